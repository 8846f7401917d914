"""The devices of a run: one, several of one host, several hosts, a TPU slice."""

import contextlib
import os
import resource
from collections.abc import Callable

import gin
import tensorflow as tf

from igpt_tf.errors import InputError


@gin.register
def default_strategy() -> tf.distribute.Strategy:
    """One device: the first accelerator, or the CPU."""
    return tf.distribute.get_strategy()


@gin.register
def mirrored_strategy(
    *, devices: tuple[str, ...] | None = None, logical_cpus: int | None = None
) -> tf.distribute.Strategy:
    """All accelerators of this host, or the named ones.

    Args:
        devices: Names such as ('GPU:0', 'GPU:1'); all accelerators if None.
        logical_cpus: Number of devices into which the CPU is divided, to try a distributed run.

    Raises:
        InputError: A device does not exist.
    """
    try:
        if logical_cpus is not None:
            parts = [tf.config.LogicalDeviceConfiguration()] * logical_cpus
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, parts)
            devices = tuple(f"CPU:{i}" for i in range(logical_cpus))
        return tf.distribute.MirroredStrategy(devices)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"these devices cannot be used together: {error} Received: devices={devices}"
        ) from None


@gin.register
def multi_worker_strategy(*, cluster: str = "tf_config") -> tf.distribute.Strategy:
    """Several hosts, each started with the same command; the workdir is a shared folder.

    Args:
        cluster: How the hosts find each other: "tf_config" (the TF_CONFIG variable) or "slurm".

    Raises:
        InputError: `cluster` is another word, or the environment does not describe a cluster.
    """
    resolvers = {
        "tf_config": tf.distribute.cluster_resolver.TFConfigClusterResolver,
        "slurm": tf.distribute.cluster_resolver.SlurmClusterResolver,
    }
    if cluster not in resolvers:
        raise InputError(
            f"multi_worker_strategy.cluster is one of {', '.join(resolvers)}. Received: {cluster!r}"
        )
    try:
        resolver = resolvers[cluster]()
        workers = resolver.cluster_spec().as_dict().get("worker")
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"no cluster is described ({error}). Received: {cluster=}") from None
    if not workers:
        raise InputError(
            "TF_CONFIG names no workers; set it on every host (README, Several devices). "
            f"Received: TF_CONFIG={os.environ.get('TF_CONFIG', '')!r}"
        )
    return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)


@gin.register
def tpu_strategy(*, address: str = "local") -> tf.distribute.Strategy:
    """A TPU slice.

    Args:
        address: 'local' on a TPU VM, else the name or grpc:// address of the TPU.

    Raises:
        InputError: No TPU answers at the address.
    """
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"no TPU answers ({type(error).__name__}). Received: address={address}"
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def worker_index(strategy: tf.distribute.Strategy) -> int:
    """Index of this worker; 0 is the chief, which writes the run's files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec().as_dict().get("worker"):
        return 0
    return resolver.task_id


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """Number of the strategy's replicas in this process."""
    if strategy.num_replicas_in_sync == 1:
        return 1  # the default strategy has no list of devices
    return len(strategy.extended.worker_devices)


def agreement(strategy: tf.distribute.Strategy) -> Callable[[bool], bool] | None:
    """Returns a function that computes "any" over the workers: bool -> bool.

    All workers must call it at the same step. Returns None with a single host.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None

    def on_any(here: bool) -> bool:
        flag = strategy.run(lambda: tf.constant(float(here)))
        return bool(strategy.reduce(tf.distribute.ReduceOp.SUM, flag, axis=None) > 0)

    return on_any


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns when every worker has called it."""
    strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: tf.ones([])), axis=None)


@contextlib.contextmanager
def lost_worker_error(strategy: tf.distribute.Strategy):
    """Replaces TensorFlow's errors of a lost worker by an InputError."""
    lost = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
    )
    try:
        yield
    except lost as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        reason = " ".join(str(error.message).split())[:160]
        raise InputError(
            "another worker was lost; start all workers again and they resume from the newest "
            f"checkpoint. Received: worker={worker_index(strategy)}, {reason}"
        ) from None


def peak_memory_gb() -> float:
    """Peak memory of this process so far, in GB: of the GPU with the highest, else of the host."""
    gpus = tf.config.list_logical_devices("GPU")
    if not gpus:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return max(tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus) / 1e9


def check_batch_size(
    strategy: tf.distribute.Strategy, batch_size: int, gradient_accumulation_steps: int | None
) -> None:
    """Raises: InputError unless the global batch divides into replicas and microbatches."""
    replicas = strategy.num_replicas_in_sync
    microbatches = 1 if gradient_accumulation_steps is None else gradient_accumulation_steps
    if min(batch_size, microbatches) < 1 or batch_size % (replicas * microbatches):
        raise InputError(
            "the global batch size must be a positive multiple of the number of replicas times "
            "step_options.gradient_accumulation_steps. Received: "
            f"train.batch_size={batch_size}, {replicas=}, "
            f"gradient_accumulation_steps={gradient_accumulation_steps}"
        )
