"""A process that runs one task of one implementation, as often as it is asked to.

It reads a line per run and answers each with a line of JSON: first the setup, then the times of the
runs, finally the peak memory.
"""

import dataclasses
import importlib
import json
import os
import sys
import time

import psutil

from igpt_tf import runtime
from igpt_tf.benchmark.workloads import Shape

MODULES = {  # implementation -> module; its functions are the tasks
    "igpt_tf": "igpt_tensorflow",
    "igpt_tf_remat": "igpt_tensorflow",
    "igpt_tf_jit": "igpt_tensorflow",
    "openai_graph": "openai_graph",
    "torch_gpt": "torch_gpt",
    "huggingface": "huggingface",
}
_USE_TENSORFLOW = ("igpt_tensorflow", "openai_graph")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker runs.

    Attributes:
        implementation: A key of `MODULES`.
        task: "train", "features", "sample", "palette", "startup" or "matmul".
        shape: The model, or None if the task has none.
        units: Number of units per run, e.g. images.
        precision: "float32" or "bfloat16", of this package only.
        threads: Number of CPU threads.
        backend: Keras' backend, "tensorflow" or "jax".
    """

    implementation: str
    task: str
    shape: Shape | None
    units: int
    precision: str
    threads: int
    backend: str = "tensorflow"

    @property
    def module(self) -> str:
        """Name of the module with the task."""
        on_jax = self.backend == "jax" and MODULES[self.implementation] == "igpt_tensorflow"
        return "igpt_jax" if on_jax else MODULES[self.implementation]

    def to_json(self) -> str:
        """JSON that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """The inverse of `to_json`."""
        fields = json.loads(text)
        shape = fields.pop("shape")
        return cls(shape=Shape(**shape) if shape else None, **fields)


def timed(function) -> dict:
    """Calls a function: wall seconds, and CPU seconds, which other programs change less.

    The attribute `scale` of a function that does part of the work is the factor to the whole.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    scale = getattr(function, "scale", 1)
    return {
        "seconds": scale * (time.perf_counter() - wall),
        "cpu_seconds": scale * (time.process_time() - cpu),
    }


def serve(job: Job, answers) -> None:
    """Sets up the task, then runs it once per line of stdin until the line "end"."""

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    try:
        if job.module in _USE_TENSORFLOW:
            runtime.import_tensorflow()  # with the settings of every program of this package
        module = importlib.import_module(f"igpt_tf.benchmark.{job.module}")
        run = getattr(module, job.task)(job)
    except ImportError as error:
        answer(missing=str(error))
        return
    answer(setup_bytes=psutil.Process().memory_info().rss)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        answer(**timed(run))
    answer(peak_bytes=_peak_bytes(), device_bytes=module.device_peak_bytes())


def _peak_bytes() -> int:
    """Peak resident memory of this process, 0 where the system does not report it."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
    except OSError:
        return 0
    return 1024 * int(lines["VmHWM"].split()[0])


def main() -> None:
    """Runs the job given as the only argument."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    serve(Job.from_json(sys.argv[1]), answers)


if __name__ == "__main__":
    main()
