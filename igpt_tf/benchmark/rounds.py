"""Implementations measured in alternation, each in a process of its own."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from igpt_tf import runtime
from igpt_tf.benchmark.worker import Job
from igpt_tf.benchmark.workloads import Part
from igpt_tf.errors import InputError


class Worker:
    """A worker process.

    Args:
        job: What it runs.

    Attributes:
        missing: Why the implementation cannot be measured, or None.
        setup: Seconds from the command to the end of the setup, and bytes held then.
    """

    def __init__(self, job: Job):
        self.job = job
        environment = {
            "OMP_NUM_THREADS": str(job.threads),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "KERAS_BACKEND": job.backend,
        }
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "igpt_tf.benchmark.worker", job.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
        answer = self._read()
        self.missing = answer.get("missing")
        self.setup = {"seconds": time.perf_counter() - start, "bytes": answer.get("setup_bytes")}

    def run(self) -> dict:
        """Runs the task once: {"seconds", "cpu_seconds"}."""
        self._write("run")
        return self._read()

    def end(self) -> dict:
        """Ends the worker: {"peak_bytes", "device_bytes"}."""
        self._write("end")
        return self._read()

    def close(self) -> None:
        """Kills the process if it still runs."""
        self._process.kill()
        self._process.communicate()

    def _write(self, line: str) -> None:
        print(line, file=self._process.stdin, flush=True)

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise InputError(
                "a process of the benchmark ended early, perhaps for lack of memory; its messages "
                f"are shown by `python -m igpt_tf.benchmark.worker '{self.job.to_json()}'`. "
                f"Received: implementation={self.job.implementation}, task={self.job.task}"
            )
        return json.loads(line)


def measure(part: Part, *, repeats: int, precision: str, threads: int, backend: str) -> dict:
    """Runs the task of a part with all its implementations, one run of each per round.

    Args:
        part: The part.
        repeats: Number of rounds after a first one, which is reported separately.
        precision: See `Job`.
        threads: See `Job`.
        backend: See `Job`.

    Returns:
        {implementation: its numbers, or {"missing": reason}}.
    """
    jobs = [
        Job(name, part.task, part.shape, part.units, precision, threads, backend)
        for name in part.implementations
    ]
    sets = [
        _measure_processes(jobs, rounds)
        for rounds in runtime.near_equal_sizes(repeats, part.num_process_sets)
    ]
    return {
        job.implementation: _numbers(part, [one[job.implementation] for one in sets])
        for job in jobs
    }


def _measure_processes(jobs: list[Job], rounds: int) -> dict:
    """New processes: {implementation: setup, first run, runs and peaks, or why it is missing}."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(contextlib.closing(Worker(job))) for job in jobs]
        present = [worker for worker in workers if worker.missing is None]
        first = [worker.run() for worker in present]
        runs = [[worker.run() for worker in present] for _ in range(rounds)]
        numbers = {worker.job.implementation: {"missing": worker.missing} for worker in workers}
        for index, worker in enumerate(present):
            numbers[worker.job.implementation] = {
                "setup": worker.setup,
                "first": first[index],
                "runs": [one[index] for one in runs],
                "peaks": worker.end(),
            }
        return numbers


def _numbers(part: Part, sets: list[dict]) -> dict:
    """Numbers of an implementation; setup and first run are those of its first process."""
    first = sets[0]
    if "missing" in first:
        return first
    runs = [run for one in sets for run in one["runs"]]
    seconds = spread([run["seconds"] for run in runs])
    numbers = {
        "setup_seconds": first["setup"]["seconds"],
        "setup_bytes": first["setup"]["bytes"],
        "first_seconds": first["first"]["seconds"],
        "seconds": seconds,
        "cpu_seconds": spread([run["cpu_seconds"] for run in runs]),
        f"{part.unit}s_per_second": part.units / seconds["median"],
        "flops_per_second": part.flops / seconds["median"] if part.flops else None,
        "peak_bytes": max(one["peaks"]["peak_bytes"] for one in sets),
        "device_bytes": max(one["peaks"]["device_bytes"] or 0 for one in sets) or None,
    }
    if part.shape:
        used = numbers["device_bytes"] or numbers["peak_bytes"] - numbers["setup_bytes"]
        numbers["bytes_per_image"] = used / part.shape.batch_size
    return numbers


def spread(values: list[float]) -> dict:
    """Median, minimum, maximum and all values."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": values,
    }


def ratios(numbers: dict) -> Iterator[tuple[str, dict]]:
    """(implementation, its time divided by this package's): per round, then median and spread."""
    own = numbers.get("igpt_tf", {}).get("seconds")
    for name, other in numbers.items():
        if own and name != "igpt_tf" and "seconds" in other:
            pairs = zip(other["seconds"]["all"], own["all"], strict=True)
            yield name, spread([theirs / ours for theirs, ours in pairs])
