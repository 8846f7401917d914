"""Claims about the trace of some steps."""

import tensorflow as tf

from igpt_tf.training.profiling import Profile


def traces(directory):
    return list(directory.glob("plugins/profile/*/*.xplane.pb"))


def run(profile, first_step, num_steps):
    for step in range(first_step, num_steps + 1):
        profile(step)
        tf.linalg.matmul(tf.ones((8, 8)), tf.ones((8, 8)))
    profile.close()


def test_the_named_steps_leave_one_trace_with_their_operations(tmp_path):
    run(Profile(str(tmp_path), (3, 5)), 1, 9)
    (trace,) = traces(tmp_path)
    assert b"MatMul" in trace.read_bytes()


def test_a_run_that_was_past_the_steps_records_nothing(tmp_path):
    run(Profile(str(tmp_path), (3, 5)), 6, 9)
    run(Profile(str(tmp_path), None), 1, 9)
    assert not traces(tmp_path)
