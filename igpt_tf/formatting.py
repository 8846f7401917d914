"""Numbers and tables as text for the terminal."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence], left: int = 1) -> str:
    """Text in columns: the first `left` columns are left-aligned, the others right-aligned."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
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
