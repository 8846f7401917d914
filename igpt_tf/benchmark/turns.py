"""Rivals taking turns: their processes, the alternation, medians with spread."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from igpt_tf import runtime
from igpt_tf.benchmark.parts import Part
from igpt_tf.benchmark.worker import Order
from igpt_tf.errors import InputError


class Rival:
    """A worker process.

    Args:
        order: What it does.

    Attributes:
        missing: Why it cannot take part, or None.
        setup: Seconds from the command to the built task, and bytes then held.
    """

    def __init__(self, order: Order):
        self.order = order
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "igpt_tf.benchmark.worker", order.json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **_environment(order.threads)},
        )
        built = self._answer()
        self.missing = built.get("missing")
        self.setup = {"seconds": time.perf_counter() - start, "bytes": built.get("setup_bytes")}

    def turn(self) -> dict:
        """Has it take a turn: {"seconds", "cpu_seconds"}."""
        self._tell("turn")
        return self._answer()

    def end(self) -> dict:
        """Ends it: {"peak_bytes", "device_bytes"}."""
        self._tell("end")
        return self._answer()

    def close(self) -> None:
        """Ends its process, however it stands."""
        self._process.kill()
        self._process.communicate()

    def _tell(self, line):
        print(line, file=self._process.stdin, flush=True)

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise InputError(
                "a rival of the benchmark died, perhaps for want of memory; see what it says with "
                f"`python -m igpt_tf.benchmark.worker '{self.order.json()}'`. "
                f"Received: rival={self.order.rival}, task={self.order.task}"
            )
        return json.loads(line)


def _environment(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}


def measure(part: Part, *, repeats: int, precision: str, threads: int) -> dict:
    """All rivals' turns at one part, in alternation.

    Returns:
        Rival's name -> its numbers, or {"missing": why}.
    """
    orders = [
        Order(name, part.task, part.shape, part.units, precision, threads) for name in part.rivals
    ]
    sittings = [
        _sitting(orders, rounds) for rounds in runtime.near_equal_sizes(repeats, part.sittings)
    ]
    return {
        order.rival: _numbers(part, [sitting[order.rival] for sitting in sittings])
        for order in orders
    }


def _sitting(orders: list[Order], rounds: int) -> dict:
    """Rivals in new processes: name -> set-up, first turn, turns, peaks, or why it is missing."""
    with contextlib.ExitStack() as stack:
        rivals = [stack.enter_context(contextlib.closing(Rival(order))) for order in orders]
        present = [rival for rival in rivals if rival.missing is None]
        first = [rival.turn() for rival in present]
        turns = list(
            zip(*([rival.turn() for rival in present] for _ in range(rounds)), strict=True)
        )
        numbers = {rival.order.rival: {"missing": rival.missing} for rival in rivals}
        for i, rival in enumerate(present):
            numbers[rival.order.rival] = {"setup": rival.setup, "first": first[i]}
            numbers[rival.order.rival] |= {"turns": turns[i], "peaks": rival.end()}
        return numbers


def _numbers(part: Part, sittings: list[dict]) -> dict:
    """A rival's numbers; of set-up and first turn those of its first process."""
    first = sittings[0]
    if "missing" in first:
        return first
    turns = [turn for sitting in sittings for turn in sitting["turns"]]
    seconds = spread([turn["seconds"] for turn in turns])
    return {
        "setup_seconds": first["setup"]["seconds"],
        "setup_bytes": first["setup"]["bytes"],
        "first_seconds": first["first"]["seconds"],
        "seconds": seconds,
        "cpu_seconds": spread([turn["cpu_seconds"] for turn in turns]),
        f"{part.unit}s_per_second": part.units / seconds["median"],
        "flops_per_second": part.flops / seconds["median"] if part.flops else None,
        **{kind: _largest(kind, sittings) for kind in first["peaks"]},
    }


def _largest(kind: str, sittings: list[dict]) -> int | None:
    return max((one["peaks"][kind] for one in sittings if one["peaks"][kind]), default=None)


def spread(values: list[float]) -> dict:
    """Median, extremes and all of them."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": values,
    }


def ratios(numbers: dict) -> Iterator[tuple[str, dict]]:
    """(rival, how many times as long as ours it takes): turn by turn, then median and spread."""
    ours = numbers.get("ours", {}).get("seconds")
    for name, other in numbers.items():
        if ours and name != "ours" and "seconds" in other:
            pairs = zip(other["seconds"]["all"], ours["all"], strict=True)
            yield name, spread([theirs / own for theirs, own in pairs])
