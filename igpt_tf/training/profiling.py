"""A look inside some steps: a trace that TensorBoard's profile page shows."""

import tensorflow as tf


class Profile:
    """Records the steps `first` to `last` once; an action to be called after every step.

    Args:
        directory: TensorBoard's log folder.
        steps: (first, last), counted from 1; None records nothing.
    """

    def __init__(self, directory: str, steps: tuple[int, int] | None):
        self._directory = directory
        self._first, self._last = steps or (1, 0)
        self._running = False

    def __call__(self, step: int) -> None:
        if self._running and step >= self._last:
            self.close()
        elif not self._running and self._first - 1 <= step < self._last:
            tf.profiler.experimental.start(self._directory)
            self._running = True

    def close(self) -> None:
        """Ends a recording that is under way."""
        if self._running:
            tf.profiler.experimental.stop()
            self._running = False
