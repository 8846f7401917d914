"""Numbers and tables as text for the terminal."""

import math
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence], left: int = 1) -> str:
    """Text in columns: the first `left` columns are left-aligned, the others right-aligned.

    Control characters are escaped: cells may hold names of files.
    """
    cells = [[printable(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column >= left else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def percent(fraction: float | None) -> str:
    """0.9567 -> "95.7 %"; "" for None."""
    return "" if fraction is None else f"{100 * fraction:.1f} %"


def wilson_interval(fraction: float, count: int) -> list[float]:
    """95 % confidence interval [low, high] of a fraction measured on `count` images.

    Unlike fraction +- 1.96 standard errors it is useful for small counts and for 0 and 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    z = 1.96
    centre = fraction + z**2 / (2 * count)
    width = z * math.sqrt(fraction * (1 - fraction) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return [max(0.0, (centre - width) / scale), min(1.0, (centre + width) / scale)]


def interval_text(interval: Sequence[float]) -> str:
    """[0.931, 0.9734] -> "93.1 to 97.3 %"."""
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def few_images_warning(count: int) -> str:
    """A warning about an accuracy measured on fewer than 100 images; "" for more."""
    if count >= 100:
        return ""
    return (
        f"Warning: measured on {count} images only; differences within the intervals mean little."
    )


def printable(text: str) -> str:
    r"""Replaces control characters, such as those of escape sequences, by "\x1b" and the like."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def size(num_bytes: float) -> str:
    """6.73e9 -> "6.73 GB"."""
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB"


def duration(seconds: float) -> str:
    """0.0642 -> "64 ms"; 270,000 -> "3.1 days"."""
    for unit, length in (
        ("years", 365 * 86_400),
        ("days", 86_400),
        ("hours", 3600),
        ("min", 60),
        ("s", 1),
    ):
        if seconds >= 2 * length or (unit == "s" and seconds >= 1):
            return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
