"""A look inside some steps: a trace that TensorBoard's profile page shows."""

import tensorflow as tf

from igpt_tf.errors import InputError


class Profile:
    """Records the steps `first` to `last` once; to be called before the first step and after each.

    A call of the step is recorded whole, whichever of its steps are asked for. A run that begins
    after `first` records what is left, one that begins after `last` nothing.

    Args:
        directory: TensorBoard's log folder.
        steps: (first, last), counted from 1; None records nothing.
        stride: Steps that a call takes.
    """

    def __init__(self, directory: str, steps: tuple[int, int] | None, *, stride: int = 1):
        self._directory = directory
        self._first, self._last = steps or (1, 0)
        self._stride = stride
        self._running = False

    def __call__(self, step: int) -> None:
        """Starts or ends the recording, where the call after `step` finished steps asks for it."""
        if self._running and step >= self._last:
            self.close()
        elif not self._running and self._first - self._stride <= step < self._last:
            tf.profiler.experimental.start(self._directory)
            self._running = True

    def close(self) -> None:
        """Ends a recording that is under way."""
        if self._running:
            tf.profiler.experimental.stop()
            self._running = False


def check_steps(steps: tuple[int, int] | None, num_steps: int) -> None:
    """Raises: InputError unless a run of `num_steps` takes the `steps` that `Profile` is given."""
    if steps is None:
        return
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1] <= num_steps:
        raise InputError(
            "intervals.profile_steps is (first, last), counted from 1 and within the run. "
            f"Received: intervals.profile_steps={steps}, num_steps={num_steps}"
        )
