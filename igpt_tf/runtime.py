"""What a program runs on: versions, hardware, memory and CPU threads."""

import contextlib
import ctypes
import datetime
import gc
import glob
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import sys

import psutil

import igpt_tf
from igpt_tf.errors import InputError

ENVIRONMENT_FILE = "environment.jsonl"
_MEMORY_FRACTION = 0.9  # of the available memory that tensors may use
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h
_ISA_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI")  # values of ONEDNN_MAX_CPU_ISA
_MAX_CPU_BRANCHES = 8  # each holds gradients of its own; further cores share operations


def import_tensorflow() -> None:
    """Imports TensorFlow as the programs need it; to be called before anything imports Keras.

    * Messages that TensorFlow prints at any log level are discarded.
    * Keras runs on TensorFlow with its default settings, whatever `KERAS_BACKEND` and the user's
      `keras.json` ask for: with another backend, or with float16 as the type of the weights,
      training would fail.
    * The CPU allocator is configured, and oneDNN's kernels are chosen also on processors with AVX2
      only, where TensorFlow by default takes slower ones.
    * An NVIDIA GPU that TensorFlow does not see is reported on stderr.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ["KERAS_HOME"] = os.devnull  # a folder without keras.json
    _configure_cpu_allocator()
    if platform.machine() in ("x86_64", "AMD64"):
        # TensorFlow's default is "1" with AVX-512 VNNI, AVX-VNNI or AMX only. Without it, a step of
        # iGPT-S takes 1.39 times the processor time on AVX2.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    is_first = "tensorflow" not in sys.modules
    with suppress_stderr():
        # Else a fifth of the import is searches for garbage, of which it makes none.
        gc.disable()
        import keras  # noqa: F401
        import tensorflow as tf

        if is_first:
            gc.freeze()
        gc.enable()
        gpus = tf.config.list_physical_devices("GPU")
    if not gpus and has_unused_gpu():
        print(
            "warning: this machine has an NVIDIA GPU, but TensorFlow finds no CUDA libraries for "
            "it and uses the CPU. Install them with `make setup` or `pip install "
            "'tensorflow[and-cuda]'`, or hide the GPU with CUDA_VISIBLE_DEVICES=-1",
            file=sys.stderr,
        )


def has_unused_gpu(root: str = "/") -> bool:
    """Whether there is an NVIDIA GPU that CUDA_VISIBLE_DEVICES does not hide.

    Args:
        root: Folder of dev/, for tests.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and bool(glob.glob(os.path.join(root, "dev", "nvidia[0-9]*")))


def _configure_cpu_allocator() -> None:
    """Lets tensors on the CPU reuse freed memory. Variables set by the user are kept.

    The C library's allocator maps memory for every large tensor again: page faults take a fifth of
    a step, and gaps between small tensors remain unused.
    """
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")  # not an allocator of oneDNN's own
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    # Beyond its memory limit the kernel kills a process without a message.
    limit = int(_MEMORY_FRACTION * available_memory()) // 2**20
    os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(max(1, limit)))
    with contextlib.suppress(AttributeError, OSError):  # other C libraries than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 2**25)
        mallopt(_M_TRIM_THRESHOLD, 2**28)


@contextlib.contextmanager
def suppress_stderr():
    """Discards what is written to file descriptor 2, also by C++ libraries."""
    sys.stderr.flush()
    saved = os.dup(2)
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)


def append_environment(folder: str) -> None:
    """Appends command, versions and hardware of this start to the folder's `environment.jsonl`."""
    line = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": versions(),
        "hardware": hardware(),
    }
    with open(os.path.join(folder, ENVIRONMENT_FILE), "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def versions() -> dict[str, str]:
    """Versions of everything that numbers depend on."""
    packages = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    return {"igpt_tf": igpt_tf.__version__, **packages, "python": platform.python_version()}


def hardware() -> dict:
    """{"cpu": str, "cores": int, "memory_gb": float, "accelerators": [str, ...]}."""
    return {
        "cpu": cpu_name(),
        "cores": num_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "accelerators": _accelerators(),
    }


def cpu_name() -> str | None:
    """The processor's name: psutil and platform report the architecture only."""
    return _cpuinfo("model name") or platform.machine() or None


def cpu_flags() -> list[str]:
    """Names of the processor's instruction sets, as `lscpu` prints them."""
    return _cpuinfo("flags").split()


def _cpuinfo(field: str) -> str:
    """A field of the first processor in /proc/cpuinfo, "" if there is none."""
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def available_memory(root: str = "/") -> int:
    """Bytes that this process may still allocate.

    The least of what the machine has left, what the control groups of the process leave
    (containers, Kubernetes, Slurm) and what the limit of its address space leaves (`ulimit -v`).

    Args:
        root: Folder of proc/ and sys/, for tests.
    """
    limits = [psutil.virtual_memory().available, *_cgroup_memory(root)]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space - psutil.Process().memory_info().vms)
    return max(0, min(limits))


def _cgroup_memory(root: str) -> list[int]:
    """Bytes left in every control group of this process that has a limit, versions 1 and 2.

    Source: kernel.org, admin-guide/cgroup-v1/memory.rst and admin-guide/cgroup-v2.rst.
    """
    left = []
    for line in _lines(os.path.join(root, "proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            mount, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = path.strip("/")
        while True:  # a limit of a group also holds for the groups inside it
            left += _left_in_group(os.path.join(root, mount, group), *names)
            if not group:
                break
            group = os.path.dirname(group)
    return left


def _left_in_group(folder: str, limit: str, usage: str, cache: str) -> list[int]:
    """[bytes left], or [] without a limit. Cached files, which can be dropped, count as free."""
    values = [_lines(os.path.join(folder, name))[:1] for name in (limit, usage)]
    if not all(value and value[0].isdecimal() for value in values):  # "max", or no such folder
        return []
    cached = [
        int(line.split()[1])
        for line in _lines(os.path.join(folder, "memory.stat"))
        if line.split()[0] == cache
    ]
    return [int(values[0][0]) - int(values[1][0]) + sum(cached)]


def _lines(path: str) -> list[str]:
    """Lines of a file of the kernel, none if there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _accelerators() -> list[str]:
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU") + tf.config.list_physical_devices("TPU")
    return [
        tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
        for device in devices
    ]


def num_cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_accelerator() -> bool:
    """Whether TensorFlow sees a GPU or a TPU."""
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"))


def peak_memory_gb() -> float:
    """Peak memory of this process so far, in GB: of its fullest GPU, without one of the host."""
    import tensorflow as tf

    gpus = tf.config.list_logical_devices("GPU")
    if not gpus:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return max(tf.config.experimental.get_memory_info(gpu.name)["peak"] for gpu in gpus) / 1e9


def check_bfloat16(name: str) -> None:
    """Rejects bfloat16 where oneDNN would abort the program.

    TensorFlow asks oneDNN for products in bfloat16 if the processor has AVX-512, also where
    ONEDNN_MAX_CPU_ISA excludes it.

    Args:
        name: Gin name of the setting.

    Raises:
        InputError: ONEDNN_MAX_CPU_ISA excludes AVX-512 and there is no accelerator.
    """
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if isa in _ISA_WITHOUT_BFLOAT16 and not has_accelerator():
        raise InputError(
            f"{name}='mixed_bfloat16' needs AVX-512 on a CPU, which ONEDNN_MAX_CPU_ISA excludes; "
            f"remove the variable or use 'float32'. Received: ONEDNN_MAX_CPU_ISA={isa}"
        )


def bfloat16_is_faster() -> bool:
    """Whether products in bfloat16 are faster than in float32: by instructions made for them."""
    if has_accelerator():
        return True
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu_flags())


def use_one_thread_per_op() -> None:
    """Limits the threads of an operation so that up to 8 operations run in parallel on the CPU.

    For programs that split their batches into independent branches: cores that share an operation
    exchange its tensors and wait for the slowest. With a branch per core, two cores need a tenth
    less time for a training step and a fifth to a third less for sampling. To be called before the
    first operation. Does nothing with an accelerator or if TF_NUM_INTRAOP_THREADS is set.
    """
    import tensorflow as tf

    accelerated = any(one.device_type != "CPU" for one in tf.config.list_physical_devices())
    if accelerated or "TF_NUM_INTRAOP_THREADS" in os.environ:
        return
    tf.config.threading.set_intra_op_parallelism_threads(-(-num_cores() // _MAX_CPU_BRANCHES))


def num_parallel_ops() -> int:
    """Number of operations that run in parallel, each with all the threads it may use."""
    import tensorflow as tf

    threads = tf.config.threading.get_intra_op_parallelism_threads()
    return max(1, num_cores() // threads) if threads else 1


def near_equal_sizes(total: int, max_parts: int) -> list[int]:
    """Sizes of at most `max_parts` parts of `total` that differ by one at most."""
    parts = min(total, max_parts)
    return [(total + index) // parts for index in range(parts)]


def largest_divisor(total: int, limit: int) -> int:
    """The largest divisor of `total` that is at most `limit`, and at least 1."""
    return next(parts for parts in range(max(1, limit), 0, -1) if total % parts == 0)
