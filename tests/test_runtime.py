"""Memory that may be used, CPU threads, Keras' settings and GPUs that TensorFlow does not see."""

import json
import os
import platform
import resource
import subprocess
import sys

import psutil
import pytest

from igpt_tf import runtime
from igpt_tf.errors import InputError


def write_files(root, **files):
    """Writes {"proc/self/cgroup": text} below a folder."""
    for path, text in files.items():
        path = root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def run_python(code, **environment):
    """stdout of a Python process."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("TF_NUM_")}
    environment = {**inherited, "CUDA_VISIBLE_DEVICES": "-1", **environment}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return ended.stdout


# Memory


def test_memory_without_limits_is_what_the_machine_has_left(tmp_path):
    available = psutil.virtual_memory().available
    assert runtime.available_memory(str(tmp_path)) == pytest.approx(available, rel=0.5)


def test_memory_is_bounded_by_a_cgroup_of_version_2_and_those_around_it(tmp_path):
    files = {
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": "1000\n",
        "sys/fs/cgroup/job/memory.max": "5000000\n",
        "sys/fs/cgroup/job/memory.current": "4000000\n",
        "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 300000\nactive_file 5\n",
    }
    write_files(tmp_path, **files)
    assert runtime.available_memory(str(tmp_path)) == 1_300_000
    write_files(tmp_path, **{"sys/fs/cgroup/job/memory.current": "6000000\n"})
    assert runtime.available_memory(str(tmp_path)) == 0


def test_memory_is_bounded_by_a_cgroup_of_version_1(tmp_path):
    files = {
        # Inside of a container the folder of the group is not mounted, its files are at the root.
        "proc/self/cgroup": "5:devices:/\n4:cpu,memory:/docker/0123\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "2500000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "600000\n",
        "sys/fs/cgroup/memory/memory.stat": "cache 9\ntotal_inactive_file 100000\n",
    }
    write_files(tmp_path, **files)
    assert runtime.available_memory(str(tmp_path)) == 2_000_000


def test_memory_is_bounded_by_the_limit_of_the_address_space(tmp_path, monkeypatch):
    used = psutil.Process().memory_info().vms
    limit = used + 10**6
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert runtime.available_memory(str(tmp_path)) <= 10**6


# Keras and GPUs


_KERAS = """
from igpt_tf import runtime
runtime.import_tensorflow()
import keras
print(keras.backend.backend(), keras.config.floatx(), keras.config.image_data_format())
"""


def test_the_users_settings_of_keras_do_not_reach_the_programs(tmp_path):
    settings = {"backend": "torch", "floatx": "float8", "image_data_format": "channels_first"}
    write_files(tmp_path, **{".keras/keras.json": json.dumps(settings)})
    output = run_python(_KERAS, HOME=str(tmp_path), KERAS_BACKEND="jax")
    assert output.split() == ["tensorflow", "float32", "channels_last"]


_ONEDNN = """
from igpt_tf import runtime
runtime.import_tensorflow()
from tensorflow.python.util import _pywrap_util_port
print(_pywrap_util_port.IsMklEnabled())
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN is for x86")
def test_onednn_is_chosen_whatever_the_processor_unless_the_user_disables_it(monkeypatch):
    assert run_python(_ONEDNN, TF_ENABLE_ONEDNN_OPTS="0").split() == ["False"]
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    code = "import os\n" + _ONEDNN + "print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    assert run_python(code).split() == ["True", "1"]


def test_an_nvidia_gpu_that_tensorflow_does_not_see_is_reported(tmp_path, monkeypatch, capsys):
    import tensorflow as tf

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not runtime.has_unused_gpu(str(tmp_path))
    write_files(tmp_path, **{"dev/nvidia0": ""})
    assert runtime.has_unused_gpu(str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not runtime.has_unused_gpu(str(tmp_path))

    # set by import_tensorflow
    for name in ("KERAS_HOME", "KERAS_BACKEND", "TF_ENABLE_ONEDNN_OPTS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(runtime, "has_unused_gpu", lambda: True)
    monkeypatch.setattr(runtime, "_configure_cpu_allocator", lambda: None)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    runtime.import_tensorflow()
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "make setup" in warning
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    runtime.import_tensorflow()
    assert not capsys.readouterr().err


# Precision


@pytest.mark.parametrize("isa, is_rejected", [("avx2", True), ("AVX512_CORE", False), ("", False)])
def test_bfloat16_is_rejected_where_onednn_would_abort(monkeypatch, isa, is_rejected):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    monkeypatch.setattr(runtime, "has_accelerator", lambda: False)
    if is_rejected:
        with pytest.raises(InputError, match="use 'float32'. Received: ONEDNN_MAX_CPU_ISA=AVX2"):
            runtime.check_bfloat16("train.precision")
    else:
        runtime.check_bfloat16("train.precision")
    monkeypatch.setattr(runtime, "has_accelerator", lambda: True)
    runtime.check_bfloat16("train.precision")


@pytest.mark.parametrize("flags, is_faster", [("avx2 avx512f", False), ("avx512_bf16", True)])
def test_bfloat16_is_faster_with_instructions_for_it(monkeypatch, flags, is_faster):
    monkeypatch.setattr(runtime, "has_accelerator", lambda: False)
    monkeypatch.setattr(
        runtime, "_lines", lambda path: ["model name: Z80", f"flags\t: sse {flags}"]
    )
    assert runtime.bfloat16_is_faster() == is_faster


# CPU threads

_THREADS = """
from igpt_tf import runtime
runtime.use_one_thread_per_op()
print(runtime.num_cores(), runtime.num_parallel_ops())
"""


def test_operations_run_in_parallel_with_one_thread_each():
    cores, operations = map(int, run_python(_THREADS).split())
    assert operations == cores // -(-cores // 8)


def test_a_number_of_threads_set_by_the_user_is_kept():
    assert run_python(_THREADS, TF_NUM_INTRAOP_THREADS="2").split()[1] == "1"


@pytest.mark.parametrize(
    ("total", "max_parts", "sizes"),
    [(16, 2, [8, 8]), (31, 2, [15, 16]), (8, 3, [2, 3, 3]), (2, 8, [1, 1]), (5, 1, [5])],
)
def test_near_equal_sizes_differ_by_one_at_most(total, max_parts, sizes):
    assert runtime.near_equal_sizes(total, max_parts) == sizes


@pytest.mark.parametrize(
    ("total", "limit", "divisor"), [(16, 2, 2), (15, 4, 3), (7, 4, 1), (8, 0, 1)]
)
def test_the_largest_divisor_is_within_the_limit(total, limit, divisor):
    assert runtime.largest_divisor(total, limit) == divisor
