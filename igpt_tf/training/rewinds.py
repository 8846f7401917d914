"""Going on after a loss that blew up: back to the last checkpoint, with other images this time."""

import json
import os
from collections.abc import Iterator

from igpt_tf.errors import InputError
from igpt_tf.training.workdir import naming_a_damaged_file, write_atomically

_APART = 1_000_003  # keeps the seeds of rewound windows apart from each other and the run's own


class NonFiniteLoss(InputError):
    """The loss or the weights are no numbers any more.

    Attributes:
        last_step: The step at which it was noticed.
    """

    def __init__(self, first_step: int, last_step: int):
        super().__init__(
            f"the loss became non-finite between steps {first_step} and {last_step}; "
            "the checkpoints before are kept. Start again in a new workdir with a lower learning "
            "rate, or let a pretraining in the same one go around it with a higher "
            "train.num_rewinds, such as --gin_param=train.num_rewinds=3"
        )
        self.last_step = last_step


class Rewinds:
    """The windows of steps that were rewound; within one, batches come from another seed.

    They are kept in a file, so that a batch stays a function of (seed, step) and the file when the
    run is resumed.

    Args:
        path: The file, JSON.
        limit: How many windows there may be.
        writes: Whether this process is the one to write the file.

    Raises:
        InputError: The file is damaged.
    """

    def __init__(self, path: str, limit: int, *, writes: bool = True):
        self._path, self._limit, self._writes = path, limit, writes
        self._windows = _read(path) if os.path.exists(path) else []

    def add(self, first_step: int, error: NonFiniteLoss) -> None:
        """Notes that the steps from `first_step` to the one of the error are taken anew.

        Raises:
            NonFiniteLoss: `error`, once there were as many rewinds as allowed.
        """
        if len(self._windows) >= self._limit:
            raise error
        self._windows.append((first_step, error.last_step))
        if self._writes:
            write_atomically(self._path, json.dumps(self._windows) + "\n")

    def segments(self, seed: int, first_step: int, num_steps: int) -> Iterator[tuple]:
        """The rest of a run as (first_step, end_step, seed), one after the other."""
        edges = {first_step, num_steps, *(edge for window in self._windows for edge in window)}
        edges = sorted(edge for edge in edges if first_step <= edge <= num_steps)
        for first, end in zip(edges[:-1], edges[1:], strict=True):
            yield first, end, seed + _APART * self._number(first)

    def _number(self, step):
        """Which rewind, counted from 1, decides about a step; 0 for none. The latest wins."""
        covering = [
            number
            for number, (first, end) in enumerate(self._windows, start=1)
            if first <= step < end
        ]
        return max(covering, default=0)


def _read(path: str) -> list[tuple[int, int]]:
    mend = "mend or remove it and start again: without it, the steps left take the run's own images"
    with naming_a_damaged_file(path, mend), open(path, encoding="utf-8") as file:
        return [(int(first), int(end)) for first, end in json.load(file)]
