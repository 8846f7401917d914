"""The loop: steps in order, actions at their period, a clean end on a signal.

It knows nothing of models: what a step and an action do is the caller's affair.
"""

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator

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


def run(
    train_step: Callable[[object, float], None],
    batches: Iterator,
    *,
    first_step: int,
    num_steps: int,
    actions: list[Periodic],
    save: Callable[[int], None],
    stride: int = 1,
    agree: Callable[[bool], bool] | None = None,
) -> None:
    """Runs steps `first_step` to `num_steps`.

    SIGINT and SIGTERM let the step end, call `save` and exit with 130 or 143.

    Args:
        train_step: Takes one batch and the seconds spent waiting for it.
        batches: Yields the batch of `first_step`, then the following ones.
        first_step: Number of steps that are already done.
        num_steps: Number of steps at the end.
        actions: Done in this order when due.
        save: Saves the state after the given number of steps.
        stride: Steps that one call of `train_step` takes; every period is a multiple of it.
        agree: Of several hosts that must stop at the same step: whether any of them was told to,
            given whether this one was. Asked every ten calls.
    """
    with _signals() as received:
        for step in range(first_step + stride, num_steps + 1, stride):
            start = time.monotonic()
            batch = next(batches)
            train_step(batch, time.monotonic() - start)
            for periodic in actions:
                if periodic.due(step, num_steps):
                    periodic.action(step)
            if agree is None:
                stop = bool(received)
            else:
                stop = step % (_AGREE_EVERY * stride) == 0 and agree(bool(received))
            if stop:
                save(step)
                sys.exit(128 + (received[0] if received else signal.SIGTERM))


@contextlib.contextmanager
def _signals():
    """Collects SIGINT and SIGTERM in a list instead of dying at once; a second one kills."""
    received = []

    def note(number, _):
        received.append(number)
        signal.signal(number, previous[number])
        print(f"\n{signal.Signals(number).name}: finishing the step, then saving", file=sys.stderr)

    previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
