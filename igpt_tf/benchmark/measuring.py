"""The whole benchmark: every chosen part, and what follows from all of them together."""

import datetime
import importlib.metadata
import os
import platform

from igpt_tf import runtime
from igpt_tf.benchmark import turns
from igpt_tf.benchmark.parts import Part

_PACKAGES = ("igpt_tf", "tensorflow", "keras", "jax", "torch", "transformers", "numpy")


def run(parts: dict[str, Part], *, repeats: int, precision: str, threads: int, tell=print) -> dict:
    """Measures the parts one after the other.

    Args:
        parts: See `parts.chosen`.
        repeats: Turns of each rival after its first; heavy parts take a third, at least 3.
        precision: "float32" or "bfloat16", of our side.
        threads: Of every rival alike.
        tell: Called with a line before each part.

    Returns:
        JSON-able: "machine", "settings", "peak_flops_per_second" and, for each part, the rivals'
        numbers, how many times as fast ours is, and the share of the peak that is reached.
    """
    results = {}
    for name, part in parts.items():
        tell(f"{part.title}: {', '.join(part.rivals)} ...")
        rivals = turns.measure(
            part,
            repeats=min(repeats, max(3, repeats // 3)) if part.heavy else repeats,
            precision=precision,
            threads=threads,
        )
        results[name] = {"rivals": rivals, "ours_is_faster": dict(turns.ratios(rivals))}
    peak = _peak(results, parts)
    for name, part in parts.items():
        results[name]["share_of_peak"] = _shares(results[name]["rivals"], part, peak)
    return {
        "machine": machine(),
        "settings": {"repeats": repeats, "precision": precision, "threads": threads},
        "peak_flops_per_second": peak,
        "parts": results,
    }


def machine() -> dict:
    """What it was measured on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "cores": runtime.num_cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "backend": os.environ.get("KERAS_BACKEND", "tensorflow"),
        "versions": versions,
    }


def _peak(results: dict, parts: dict[str, Part]) -> float | None:
    """The fastest product of two large matrices that anybody has made."""
    rates = [
        parts[name].flops / numbers["seconds"]["min"]
        for name in results
        if parts[name].task == "matmul"
        for numbers in results[name]["rivals"].values()
        if "seconds" in numbers
    ]
    return max(rates, default=None)


def _shares(rivals: dict, part: Part, peak: float | None) -> dict:
    """Model FLOP utilisation by rival."""
    if not (peak and part.flops):
        return {}
    return {
        name: numbers["flops_per_second"] / peak
        for name, numbers in rivals.items()
        if "flops_per_second" in numbers
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model n")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
