"""The loop: steps in order, actions at their period, a clean end on a signal.

It knows nothing of models: what a step and an action do is the caller's affair.
"""

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

_AGREE_EVERY = 10  # calls; asking the other hosts at every step would slow each


@dataclasses.dataclass(frozen=True)
class Periodic:
    """Something done every `every` steps and after the last; never if `every` is 0.

    Attributes:
        every: Period in steps.
        action: Called with the number of finished steps.
    """

    every: int
    action: Callable[[int], None]

    def due(self, step: int, num_steps: int) -> bool:
        """Whether the action follows the `step`-th finished step."""
        return self.every > 0 and (step % self.every == 0 or step == num_steps)


class Stop:
    """Notes SIGINT and SIGTERM in its `with` block instead of dying at once; a second one kills.

    Args:
        agree: Of several hosts that must stop at the same step: whether any of them was told to,
            given whether this one was.
    """

    def __init__(self, agree: Callable[[bool], bool] | None = None):
        self._agree = agree
        self._received = []

    def __enter__(self):
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self._received.append(number)
        signal.signal(number, self._previous[number])
        print(f"\n{signal.Signals(number).name}: finishing the step, then saving", file=sys.stderr)

    def told(self, call: int = 0) -> bool:
        """Whether to end; hosts ask each other after every tenth call of the step, and at 0."""
        if self._agree is None:
            return bool(self._received)
        return call % _AGREE_EVERY == 0 and self._agree(bool(self._received))

    def leave(self) -> NoReturn:
        """Exits with 128 and the signal's number; another host's signal counts as SIGTERM."""
        sys.exit(128 + (self._received[0] if self._received else signal.SIGTERM))


def run(
    train_step: Callable[[object, float], None],
    batches: Iterator,
    *,
    first_step: int,
    num_steps: int,
    actions: list[Periodic],
    save: Callable[[int], None],
    stop: Stop,
    stride: int = 1,
) -> None:
    """Runs steps `first_step` to `num_steps`.

    Once `stop` is told, the step ends, `save` is called and the program exits with 130 or 143.

    Args:
        train_step: Takes one batch and the seconds spent waiting for it.
        batches: Yields the batch of `first_step`, then the following ones.
        first_step: Number of steps that are already done.
        num_steps: Number of steps at the end.
        actions: Done in this order when due.
        save: Saves the state after the given number of steps.
        stop: Notes signals; the caller holds it, because a loop may be left and run again.
        stride: Steps that one call of `train_step` takes; every period is a multiple of it.
    """
    for step in range(first_step + stride, num_steps + 1, stride):
        start = time.monotonic()
        batch = next(batches)
        train_step(batch, time.monotonic() - start)
        for periodic in actions:
            if periodic.due(step, num_steps):
                periodic.action(step)
        if stop.told(step // stride):
            save(step)
            stop.leave()
