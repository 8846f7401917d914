"""Recovery from a loss that became non-finite: back to a checkpoint, then on with other images."""

import os
from collections.abc import Iterator

from igpt_tf import files
from igpt_tf.errors import InputError

_SEED_STRIDE = 1_000_003  # between the seeds of rewound windows, and of the run itself
_FIX = "repair or remove it and start again: without it, the remaining steps take the run's images"


class NonFiniteLoss(InputError):
    """The loss or the weights are not finite.

    Attributes:
        last_step: Step at which this was noticed.
    """

    def __init__(self, first_step: int, last_step: int):
        super().__init__(
            f"the loss became non-finite between steps {first_step} and {last_step}; "
            "the checkpoints before are kept. Start again in a new workdir with a lower learning "
            "rate, or let a pretraining skip these images in the same workdir with a higher "
            "train.num_rewinds, such as --gin_param=train.num_rewinds=3"
        )
        self.last_step = last_step


class Rewinds:
    """Windows of steps that were repeated with batches of a different seed.

    They are stored in a file, so that a batch remains a function of (seed, step) and that file when
    the run is resumed.

    Args:
        path: Path of the JSON file, [[first_step, last_step], ...].
        limit: Maximum number of windows.
        is_writer: Whether this process writes the file.

    Raises:
        InputError: The file is damaged.
    """

    def __init__(self, path: str, limit: int, *, is_writer: bool = True):
        self._path, self._limit, self._is_writer = path, limit, is_writer
        self._windows = []
        if os.path.exists(path):
            self._windows = files.read_json(
                path,
                description="the list of the run's rewound steps",
                fix=_FIX,
                schema=list[tuple[int, int]],
            )

    def add(self, first_step: int, error: NonFiniteLoss) -> None:
        """Adds the window from `first_step` to the step of the error.

        Raises:
            NonFiniteLoss: `error`, if the limit is reached.
        """
        if len(self._windows) >= self._limit:
            raise error
        self._windows.append((first_step, error.last_step))
        if self._is_writer:
            files.write_json(self._path, self._windows)

    def segments(self, seed: int, first_step: int, num_steps: int) -> Iterator[tuple]:
        """Divides the remaining steps by the seed of their batches.

        Yields:
            (first_step, end_step, seed), in order, without gaps.
        """
        edges = {first_step, num_steps, *(edge for window in self._windows for edge in window)}
        edges = sorted(edge for edge in edges if first_step <= edge <= num_steps)
        for first, end in zip(edges[:-1], edges[1:], strict=True):
            yield first, end, seed + _SEED_STRIDE * self._window_number(first)

    def _window_number(self, step: int) -> int:
        """Number of the latest window that contains a step, counted from 1; 0 if there is none."""
        numbers = [
            number
            for number, (first, end) in enumerate(self._windows, start=1)
            if first <= step < end
        ]
        return max(numbers, default=0)
