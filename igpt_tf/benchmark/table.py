"""The benchmark's numbers as text."""

from igpt_tf.benchmark.parts import Part
from igpt_tf.formatting import table

_HEADER = (
    "part",
    "rival",
    "seconds",
    "spread",
    "a second",
    "ours is",
    "spread",
    "of peak",
    "first, s",
    "CPU, s",
    "memory, GB",
)


def of(results: dict, parts: dict[str, Part]) -> str:
    """One table of all parts; `results` as `benchmark.run` returns them."""
    rows = []
    for name, part in parts.items():
        for rival, numbers in results[name]["rivals"].items():
            rows.append([part.title, rival, *_cells(part, rival, numbers, results[name])])
    return table(_HEADER, rows, left=2)


def _cells(part: Part, rival: str, numbers: dict, result: dict) -> list[str]:
    if "missing" in numbers:
        return ["not installed"] + [""] * (len(_HEADER) - 3)
    ratio = result["ours_is_faster"].get(rival)
    share = result["share_of_peak"].get(rival)
    return [
        f"{numbers['seconds']['median']:.4g}",
        _spread(numbers["seconds"], ".4g"),
        f"{numbers[f'{part.unit}s_per_second']:,.4g} {part.unit}s",
        f"{ratio['median']:.2f}x" if ratio else "",
        _spread(ratio, ".2f") if ratio else "",
        f"{share:.0%}" if share else "",
        f"{numbers['first_seconds']:.1f}",
        f"{numbers['cpu_seconds']['median']:.4g}",
        f"{numbers['peak_bytes'] / 1e9:.2f}" + _device(numbers["device_bytes"]),
    ]


def _spread(numbers: dict, form: str) -> str:
    return f"{numbers['min']:{form}}-{numbers['max']:{form}}"


def _device(size: int | None) -> str:
    return f" + {size / 1e9:.2f}" if size else ""
