"""Claims about how cores share work."""

import os
import subprocess
import sys

import pytest

from igpt_tf import runtime

_TELL = """
from igpt_tf import runtime
runtime.use_one_thread_per_op()
print(runtime.num_cores(), runtime.num_parallel_ops())
"""


def told(**environment):
    """(cores, operations at once) in a process of its own that separates its runtime."""
    inherited = {key: os.environ[key] for key in os.environ if not key.startswith("TF_NUM_")}
    environment = {**inherited, "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [sys.executable, "-c", _TELL]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return tuple(map(int, ended.stdout.split()))


def test_separate_cores_work_at_an_operation_each():
    count, at_once = told()
    threads = -(-count // 8)
    assert at_once == count // threads


def test_threads_that_the_user_has_set_stay():
    assert told(TF_NUM_INTRAOP_THREADS="2")[1] == 1


@pytest.mark.parametrize(
    ("number", "most", "sizes"),
    [(16, 2, [8, 8]), (31, 2, [15, 16]), (8, 3, [2, 3, 3]), (2, 8, [1, 1]), (5, 1, [5])],
)
def test_like_parts_use_all_cores_and_differ_by_one_at_most(number, most, sizes):
    assert runtime.near_equal_sizes(number, most) == sizes


@pytest.mark.parametrize(
    ("number", "most", "parts"), [(16, 2, 2), (15, 4, 3), (7, 4, 1), (8, 0, 1)]
)
def test_parts_are_equal(number, most, parts):
    assert runtime.largest_divisor(number, most) == parts
