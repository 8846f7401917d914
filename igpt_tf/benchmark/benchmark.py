"""The whole benchmark: every selected part, the machine, and the table."""

import datetime
import importlib.metadata
import os
import platform

from igpt_tf import runtime
from igpt_tf.benchmark import rounds
from igpt_tf.benchmark.workloads import Part
from igpt_tf.formatting import percent, table

_PACKAGES = ("igpt_tf", "tensorflow", "keras", "jax", "torch", "transformers", "numpy")
# Environment variables that limit the instructions of TensorFlow's and torch's libraries.
_ISA_OVERRIDES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
_HEADER = (
    "part",
    "implementation",
    "seconds",
    "per second",
    "igpt_tf is faster by",
    "GFLOP/s",
    "of peak",
    "first, s",
    "CPU, s",
    "memory, GB",
    "MB per image",
)


def run(
    parts: dict[str, Part],
    *,
    repeats: int,
    precision: str,
    threads: int,
    backend: str = "tensorflow",
    log=print,
) -> dict:
    """Measures parts one after another.

    Args:
        parts: See `workloads.select_parts`.
        repeats: Number of runs per implementation after a first one; long parts take a third, at
            least 3 if so many are given.
        precision: "float32" or "bfloat16", of this package only.
        threads: Number of CPU threads of every implementation.
        backend: Keras' backend, "tensorflow" or "jax".
        log: Function that is called with a line per part.

    Returns:
        JSON-able: "machine", "settings", "peak_flops_per_second" and, per part, the numbers of the
        implementations, the ratios of their times to this package's, the fractions of the peak.
    """
    settings = {"precision": precision, "threads": threads, "backend": backend}
    results = {}
    for name, part in parts.items():
        log(f"{part.title}: {', '.join(part.implementations)} ...")
        number = min(repeats, max(3, repeats // 3)) if part.is_long else repeats
        numbers = rounds.measure(part, repeats=number, **settings)
        results[name] = {"implementations": numbers, "time_ratios": dict(rounds.ratios(numbers))}
    peak = _peak_flops(results, parts)
    for result in results.values():
        result["fraction_of_peak"] = {
            name: numbers["flops_per_second"] / peak
            for name, numbers in result["implementations"].items()
            if peak and numbers.get("flops_per_second")
        }
    return {
        "machine": machine(),
        "settings": {"repeats": repeats, **settings},
        "peak_flops_per_second": peak,
        "parts": results,
    }


def machine() -> dict:
    """What was measured on: processor, instruction sets, versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": runtime.cpu_name(),
        "instruction_sets": sorted(x for x in runtime.cpu_flags() if x.startswith(("avx", "amx"))),
        "instruction_set_overrides": {
            name: os.environ[name] for name in _ISA_OVERRIDES if name in os.environ
        },
        "cores": runtime.num_cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def _peak_flops(results: dict, parts: dict[str, Part]) -> float | None:
    """FLOP/s of the fastest product of two large matrices of all implementations."""
    rates = [
        parts[name].flops / numbers["seconds"]["min"]
        for name, result in results.items()
        if parts[name].task == "matmul"
        for numbers in result["implementations"].values()
        if "seconds" in numbers
    ]
    return max(rates, default=None)


def format_result(result: dict, parts: dict[str, Part]) -> str:
    """The result of `run` as a table, under a line about the machine."""
    rows = []
    for name, part in parts.items():
        for implementation, numbers in result["parts"][name]["implementations"].items():
            cells = _cells(part, implementation, numbers, result["parts"][name])
            rows.append([part.title, implementation, *cells])
    return f"{_machine_line(result['machine'])}\n\n{table(_HEADER, rows, left=2)}"


def _machine_line(machine: dict) -> str:
    flags = machine["instruction_sets"]
    families = {"AVX-512": "avx512f", "AVX2": "avx2", "AMX": "amx_tile", "bfloat16": "avx512_bf16"}
    present = [family for family, flag in families.items() if flag in flags]
    overrides = [f"{name}={value}" for name, value in machine["instruction_set_overrides"].items()]
    return (
        f"{machine['date']}: {machine['cpu']}, {machine['cores']} cores, "
        f"{', '.join(present) or 'no AVX2'}; environment: {' '.join(overrides) or 'no overrides'}; "
        f"load {machine['load']:.1f}"
    )


def _cells(part: Part, implementation: str, numbers: dict, result: dict) -> list[str]:
    if "missing" in numbers:
        return ["not installed"] + [""] * (len(_HEADER) - 3)
    ratio = result["time_ratios"].get(implementation)
    flops, per_image = numbers["flops_per_second"], numbers.get("bytes_per_image")
    return [
        _with_spread(numbers["seconds"], ".4g"),
        f"{numbers[f'{part.unit}s_per_second']:,.4g} {part.unit}s",
        _with_spread(ratio, ".2f") if ratio else "",
        f"{flops / 1e9:,.1f}" if flops else "",
        percent(result["fraction_of_peak"].get(implementation)),
        f"{numbers['first_seconds']:.1f}",
        f"{numbers['cpu_seconds']['median']:.4g}",
        f"{numbers['peak_bytes'] / 1e9:.2f}"
        + (f" + {numbers['device_bytes'] / 1e9:.2f}" if numbers["device_bytes"] else ""),
        f"{per_image / 1e6:,.1f}" if per_image else "",
    ]


def _with_spread(numbers: dict, form: str) -> str:
    median, low, high = (numbers[name] for name in ("median", "min", "max"))
    return f"{median:{form}} ({low:{form}}-{high:{form}})"
