"""The devices of a run: one, several of one host, several hosts, a TPU slice."""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Sequence

import gin
import numpy as np
import tensorflow as tf

from igpt_tf.errors import InputError, check_choice
from igpt_tf.training import clusters
from igpt_tf.training.mesh import ShardedStrategy, create_mesh, dtensor_variables

_MAX_SETTINGS_BYTES = 2**16


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
        InputError: A device does not exist or is named twice.
    """
    try:
        if logical_cpus is not None:
            _divide_cpu(logical_cpus)
            devices = tuple(f"CPU:{i}" for i in range(logical_cpus))
        if devices is not None:
            _check_devices(devices)
        return tf.distribute.MirroredStrategy(devices)
    except (ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"these devices cannot be used together: {error} Received: devices={devices}"
        ) from None


def _divide_cpu(number: int) -> None:
    """Divides the CPU into logical devices. Raises: RuntimeError: TensorFlow has started."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * number
    tf.config.set_logical_device_configuration(cpu, parts)


def _check_devices(devices: Sequence[str]) -> None:
    """Raises InputError unless every device exists and is named once."""
    existing = [device.name.rpartition("device:")[2] for device in tf.config.list_logical_devices()]
    named = [device.rpartition("/")[2].removeprefix("device:").upper() for device in devices]
    problem = None
    if not named:
        problem = "at least one device must be named"
    elif missing := [device for device in named if device not in existing]:
        problem = f"there is no device {missing[0]}; choose from {', '.join(existing)}"
    elif len(set(named)) < len(named):
        problem = "a device is named twice"
    if problem:
        raise InputError(f"{problem}. Received: mirrored_strategy.devices={tuple(devices)}")


@gin.register
def multi_worker_strategy(
    *, cluster: str = "tf_config", startup_seconds: int = 600
) -> tf.distribute.Strategy:
    """Several hosts, each started with the same command; the workdir is a shared folder.

    The chief, or worker 0 if the cluster has no chief, writes the run's files.

    Args:
        cluster: How the hosts find each other: "tf_config" (the TF_CONFIG variable) or "slurm".
        startup_seconds: Time to wait until all workers have started.

    Raises:
        InputError: `cluster` is unknown, the environment does not describe a cluster of a chief and
            workers, or the port of this worker is in use.
    """
    check_choice("multi_worker_strategy.cluster", cluster, ("tf_config", "slurm"))
    resolver = clusters.resolve(cluster)
    received = clusters.describe(resolver)
    clusters.wait_for_workers(
        *clusters.processes(resolver), startup_seconds, "multi_worker_strategy.startup_seconds"
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except (tf.errors.OpError, RuntimeError) as error:
        raise InputError(
            f"the workers cannot be connected ({clusters.first_line(error)}); check the addresses "
            f"and start all workers again. Received: {received}"
        ) from None


@gin.register
def sharded_strategy(
    *, cluster: str = "local", logical_cpus: int | None = None, startup_seconds: int = 600
) -> ShardedStrategy:
    """All devices of one or several hosts, each holding a shard of the weights.

    Args:
        cluster: "local" for the devices of this host, or how several hosts find each other:
            "tf_config" (the TF_CONFIG variable) or "slurm". Each host runs one process.
        logical_cpus: Number of devices into which the CPU is divided, to try a sharded run.
        startup_seconds: Time to wait until all workers have started.

    Raises:
        InputError: The environment does not describe a cluster, or the devices cannot be used.
    """
    check_choice("sharded_strategy.cluster", cluster, ("local", "tf_config", "slurm"))
    received = f"sharded_strategy.cluster={cluster!r}"
    if cluster != "local":
        resolver = clusters.resolve(cluster)
        received = clusters.describe(resolver)
        addresses, index = clusters.processes(resolver)
        clusters.wait_for_workers(
            addresses, index, startup_seconds, "sharded_strategy.startup_seconds"
        )
        os.environ.update(dtensor_variables(addresses, index))
    has_gpus = bool(tf.config.list_physical_devices("GPU"))
    if logical_cpus is not None:
        _divide_cpu(logical_cpus)
    try:
        return ShardedStrategy(create_mesh("GPU" if has_gpus and logical_cpus is None else "CPU"))
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise InputError(
            f"the devices cannot be used together ({clusters.first_line(error)}); check the "
            f"addresses and start all workers again. Received: {received}"
        ) from None


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
    """Index of this worker; 0 is the chief, which writes the run's files.

    As in TensorFlow, the chief is the job of that name, or else worker 0.
    """
    if isinstance(strategy, ShardedStrategy):
        return strategy.worker_index
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type in (None, "chief"):
        return 0
    cluster = resolver.cluster_spec().as_dict()
    if not cluster.get("worker"):
        return 0
    return resolver.task_id + len(cluster.get("chief", []))


def local_replicas(strategy: tf.distribute.Strategy) -> int:
    """Number of the strategy's replicas in this process."""
    if strategy.num_replicas_in_sync == 1:
        return 1  # the default strategy has no list of devices
    return len(strategy.extended.worker_devices)


def any_worker_function(strategy: tf.distribute.Strategy) -> Callable[[bool], bool] | None:
    """Returns a function bool -> bool: whether its argument is true on any worker.

    All workers must call it at the same step. None with a single worker.
    """
    if isinstance(strategy, ShardedStrategy):
        return strategy.any_worker if strategy.num_workers > 1 else None
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None

    def any_worker(here: bool) -> bool:
        flag = strategy.run(lambda: tf.constant(float(here)))
        return bool(strategy.reduce(tf.distribute.ReduceOp.SUM, flag, axis=None) > 0)

    return any_worker


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns when every worker has called it."""
    if isinstance(strategy, ShardedStrategy):
        strategy.any_worker(False)
        return
    strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: tf.ones([])), axis=None)


def check_same_on_all_workers(strategy: tf.distribute.Strategy, settings: dict[str, str]) -> None:
    """Compares the settings of this process with those of the chief, before the first step.

    Every worker calls it, and every one ends if one differs.

    Args:
        strategy: The strategy in force.
        settings: Name -> value of everything that has to be the same.

    Raises:
        InputError: Names the first setting that differs, and its values.
    """
    if not has_several_workers(strategy):
        return
    own = zlib.compress(json.dumps(settings, sort_keys=True).encode())
    if len(own) > _MAX_SETTINGS_BYTES - 4:
        raise InputError(f"the configuration is too long. Received: {len(own):,} bytes compressed")
    row = np.zeros([1, _MAX_SETTINGS_BYTES], "float32")  # every collective can transport float32
    row[0, :4] = np.frombuffer(np.uint32(len(own)).tobytes(), "uint8")
    row[0, 4 : 4 + len(own)] = np.frombuffer(own, "uint8")
    with lost_worker_error(strategy):
        if isinstance(strategy, ShardedStrategy):
            rows, num_devices = strategy.gather_rows(row), strategy.mesh.num_local_devices()
        else:
            rows = strategy.gather(strategy.run(lambda: tf.constant(row)), axis=0).numpy()
            num_devices = local_replicas(strategy)
    all_settings = [_settings_in(row) for row in rows[::num_devices]]
    for worker, other in enumerate(all_settings):
        if difference := _first_difference(all_settings[0], other):
            name, chief_value, value = difference
            raise InputError(
                f"the workers have different settings; start all with the same command, files, "
                f"data and versions. Received: {name} = {value} on worker {worker}, "
                f"{chief_value} on the chief"
            )


def _settings_in(row: np.ndarray) -> dict[str, str]:
    content = row.astype("uint8").tobytes()
    length = int(np.frombuffer(content[:4], "uint32")[0])
    return json.loads(zlib.decompress(content[4 : 4 + length]))


def _first_difference(one: dict, other: dict) -> tuple[str, str, str] | None:
    for name in sorted(one.keys() | other.keys()):
        values = one.get(name, "(unset)"), other.get(name, "(unset)")
        if values[0] != values[1]:
            return name, *values
    return None


def has_several_workers(strategy: tf.distribute.Strategy | ShardedStrategy) -> bool:
    """Whether the run has several processes."""
    if isinstance(strategy, ShardedStrategy):
        return strategy.num_workers > 1
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


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
        if not has_several_workers(strategy):
            raise
        reason = clusters.first_line(error)
        raise InputError(
            "another worker was lost; start all workers again and they resume from the newest "
            f"checkpoint. Received: worker={worker_index(strategy)}, {reason}"
        ) from None


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
