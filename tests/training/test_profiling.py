"""Claims about the trace of some steps."""

import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.training.profiling import Profile, check_steps


def traces(directory):
    return list(directory.glob("plugins/profile/*/*.xplane.pb"))


def run(profile, first_step, num_steps, stride=1):
    """Calls that take `stride` steps each; the n-th step multiplies by an operation named so."""
    profile(first_step)
    for step in range(first_step, num_steps, stride):
        for number in range(step + 1, step + stride + 1):
            with tf.profiler.experimental.Trace(f"step_{number:02}"):
                tf.linalg.matmul(tf.ones((8, 8)), tf.ones((8, 8)))
        profile(step + stride)
    profile.close()


def recorded(directory, num_steps=12):
    """The steps in the one trace."""
    (trace,) = traces(directory)
    content = trace.read_bytes()
    assert b"MatMul" in content
    return [n for n in range(1, num_steps + 1) if f"step_{n:02}".encode() in content]


@pytest.mark.parametrize("steps", [(1, 1), (1, 2), (3, 5), (12, 12)])
def test_the_named_steps_and_no_others_leave_a_trace_with_their_operations(tmp_path, steps):
    run(Profile(str(tmp_path), steps), 0, 12)
    assert recorded(tmp_path) == list(range(steps[0], steps[1] + 1))


@pytest.mark.parametrize(
    ("steps", "calls"), [((3, 4), (1, 4)), ((5, 8), (5, 8)), ((4, 5), (1, 8)), ((12, 12), (9, 12))]
)
def test_calls_of_several_steps_are_recorded_whole(tmp_path, steps, calls):
    run(Profile(str(tmp_path), steps, stride=4), 0, 12, stride=4)
    assert recorded(tmp_path) == list(range(calls[0], calls[1] + 1))


def test_a_run_resumed_among_the_steps_records_the_rest(tmp_path):
    run(Profile(str(tmp_path), (3, 5)), 4, 9)
    assert recorded(tmp_path) == [5]


def test_a_run_that_was_past_the_steps_records_nothing(tmp_path):
    run(Profile(str(tmp_path), (3, 5)), 5, 9)
    run(Profile(str(tmp_path), None), 0, 9)
    assert not traces(tmp_path)


@pytest.mark.parametrize("steps", [(0, 2), (5, 3), (10, 13), (13, 14), (3,), (1, 2, 3)])
def test_steps_that_the_run_does_not_take_are_refused(steps):
    with pytest.raises(InputError, match="profile_steps"):
        check_steps(steps, num_steps=12)


def test_steps_of_the_run_are_taken():
    for steps in (None, (1, 1), (1, 12), (12, 12)):
        check_steps(steps, num_steps=12)
