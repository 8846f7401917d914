"""A rival's process: builds its task, then takes a turn whenever it is told to.

It reads one line for each turn and answers with one line of JSON: the set-up, then a line a turn,
then the peak of its memory.
"""

import dataclasses
import importlib
import json
import os
import sys
import time

from igpt_tf import runtime
from igpt_tf.benchmark.shapes import Shape

_MODULES = {
    "ours": "ours",
    "ours_recompute": "ours",
    "ours_jit": "ours",
    "openai_graph": "openai_graph",
    "gpt": "plain_gpt",
    "huggingface": "huggingface",
}


@dataclasses.dataclass(frozen=True)
class Order:
    """What a worker is asked for.

    Attributes:
        rival: Name of the rival.
        task: "train", "features", "sample", "palette", "startup" or "matmul".
        shape: The model's, if the task has one.
        units: Of a turn, such as images.
        precision: "float32" or "bfloat16".
        threads: Of every rival alike.
    """

    rival: str
    task: str
    shape: Shape | None
    units: int
    precision: str
    threads: int

    @classmethod
    def of(cls, text: str) -> "Order":
        """From JSON."""
        fields = json.loads(text)
        shape = fields.pop("shape")
        return cls(shape=Shape(**shape) if shape else None, **fields)

    def json(self) -> str:
        """`of` reads it."""
        return json.dumps(dataclasses.asdict(self))


def memory_bytes(name: str = "VmHWM") -> int:
    """Of this process: its peak ("VmHWM") or what it holds now ("VmRSS"), 0 where unknown."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
    except OSError:
        return 0
    return 1024 * int(lines[name].split()[0])


def timed(function) -> dict:
    """Calls it: wall seconds and, which a busy machine disturbs less, CPU seconds.

    A function that does a part of the work only says by `times` how much the whole is.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    times = getattr(function, "times", 1)
    return {
        "seconds": times * (time.perf_counter() - wall),
        "cpu_seconds": times * (time.process_time() - cpu),
    }


def serve(order: Order, answers) -> None:
    """Builds the task, takes a first turn, then one for each line of stdin."""

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    _use_cores(order.threads)
    start = time.perf_counter()
    try:
        if _uses_tensorflow(order):
            runtime.import_tensorflow()  # with what every program of ours sets
        module = importlib.import_module(f"igpt_tf.benchmark.{_MODULES[order.rival]}")
        turn = getattr(module, order.task)(order)
    except ImportError as error:
        answer(missing=str(error))
        return
    answer(setup_seconds=time.perf_counter() - start, setup_bytes=memory_bytes("VmRSS"))
    for line in sys.stdin:
        if line.strip() == "end":
            break
        answer(**timed(turn))
    answer(peak_bytes=memory_bytes(), device_bytes=module.device_peak_bytes())


def _use_cores(number: int) -> None:
    """No more than so many."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])


def _uses_tensorflow(order: Order) -> bool:
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    return _MODULES[order.rival] in ("ours", "openai_graph") and backend == "tensorflow"


def main() -> None:
    """Serves the order given as the only argument."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    serve(Order.of(sys.argv[1]), answers)


if __name__ == "__main__":
    main()
