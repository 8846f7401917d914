"""The devices of a run: one, several of one host, several hosts, a TPU slice."""

import contextlib
import json
import os
import resource
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Sequence

import gin
import numpy as np
import tensorflow as tf

from igpt_tf.errors import InputError, check_choice

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
            parts = [tf.config.LogicalDeviceConfiguration()] * logical_cpus
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, parts)
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
    if cluster == "tf_config":
        _check_tf_config(os.environ.get("TF_CONFIG", ""))
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    else:
        try:
            resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
            resolver.cluster_spec()
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"Slurm does not describe a cluster ({error}); start the program with srun. "
                f"Received: {cluster=}"
            ) from None
    message = (
        f"not all workers started within {startup_seconds} seconds; start every one, or set "
        "multi_worker_strategy.startup_seconds"
    )
    with exit_after(startup_seconds, f"{message}. Received: {_describe(resolver)}"):
        try:
            return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
        except (tf.errors.OpError, RuntimeError) as error:
            raise InputError(
                f"the workers cannot be connected ({_first_line(error)}); check the addresses and "
                f"start all workers again. Received: {_describe(resolver)}"
            ) from None


def _check_tf_config(text: str) -> None:
    """Raises InputError unless TF_CONFIG describes a cluster and this process' place in it."""
    problem = None
    try:
        described = json.loads(text or "{}")
        task = described.get("task", {})
        kind, index = task.get("type"), task.get("index")
        cluster = {job: list(addresses) for job, addresses in described["cluster"].items()}
        addresses = cluster.get(kind, [])
    except KeyError:
        problem = "it names no cluster"
    except (ValueError, TypeError, AttributeError):
        problem = 'it is not {"cluster": {"worker": [ADDRESS, ...]}, "task": {"type", "index"}}'
    if problem is None:
        others = sorted(cluster.keys() - {"chief", "worker", "evaluator"})
        wrong = [a for job in cluster.values() for a in job if not _is_address(a)]
        if kind is None or index is None:
            problem = "it names no task; set the type and the index of this process"
        elif kind not in ("chief", "worker"):
            problem = "a task must be of type chief or worker; start no process for another"
        elif others:
            problem = f"jobs of type {others[0]} are not supported; only chief and worker are"
        elif len(cluster.get("chief", [])) > 1:
            problem = "there may be one chief only"
        elif not isinstance(index, int | str) or not str(index).isdecimal():
            problem = "the index of the task must be a whole number"
        elif int(index) >= len(addresses):
            problem = f"the index of the task must be below {len(addresses)}, the number of {kind}s"
        elif wrong:
            problem = f"{wrong[0]!r} is not an address HOST:PORT"
    if problem:
        raise InputError(
            f"TF_CONFIG does not describe a cluster: {problem} (README, Several devices). "
            f"Received: TF_CONFIG={text!r}"
        )
    _check_port(addresses[int(index)])


def _is_address(address) -> bool:
    host, _, port = str(address).rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 2**16


def _check_port(address: str) -> None:
    """Raises InputError if another process uses the port of this worker."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(address.rpartition(":")[2])))
        except OSError as error:
            raise InputError(
                f"the port of this worker cannot be used ({error.strerror}); end the process that "
                f"uses it, or choose another port on every host. Received: address={address}"
            ) from None


def _describe(resolver) -> str:
    return (
        f"task={resolver.task_type} {resolver.task_id}, cluster={resolver.cluster_spec().as_dict()}"
    )


def _first_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", error)).split())[:160]


@contextlib.contextmanager
def exit_after(seconds: float, message: str):
    """Ends the process with code 2 and one line if the block takes longer.

    For waits inside of TensorFlow, which cannot be interrupted.
    """

    def end():
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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


def check_same_on_all_workers(strategy: tf.distribute.Strategy, settings: dict[str, str]) -> None:
    """Compares the settings of this process with those of the chief, before the first step.

    Every worker calls it, and every one ends if one differs.

    Args:
        strategy: The strategy in force.
        settings: Name -> value of everything that has to be the same.

    Raises:
        InputError: Names the first setting that differs, and its values.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    own = zlib.compress(json.dumps(settings, sort_keys=True).encode())
    if len(own) > _MAX_SETTINGS_BYTES - 4:
        raise InputError(f"the configuration is too long. Received: {len(own):,} bytes compressed")
    row = np.zeros([1, _MAX_SETTINGS_BYTES], "float32")  # every collective can transport float32
    row[0, :4] = np.frombuffer(np.uint32(len(own)).tobytes(), "uint8")
    row[0, 4 : 4 + len(own)] = np.frombuffer(own, "uint8")
    with lost_worker_error(strategy):
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
        reason = _first_line(error)
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
