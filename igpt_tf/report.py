"""Numbers into files and onto the terminal."""

import json
import os
import tempfile
from collections.abc import Sequence

import numpy as np

from igpt_tf.errors import InputError


def make_workdir(path: str) -> str:
    """Creates a tool's folder, unless it is there, and tries to write in it; `path` again.

    Programs call it before their work, which would be lost without a place for it.

    Raises:
        InputError: The folder cannot be created or written.
    """
    doing = "created"
    try:
        os.makedirs(path, exist_ok=True)
        doing = "written"
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"1")
    except OSError as error:
        raise InputError(
            f"the workdir cannot be {doing} ({error.strerror}); name another or mend this. "
            f"Received: workdir={path}"
        ) from None
    return path


def write_json(path: str, report: dict) -> None:
    """Writes sorted, indented JSON; the file is either whole or absent."""
    text = json.dumps(report, indent=2, sort_keys=True, default=_plain, allow_nan=False)
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(text + "\n")
    os.replace(path + ".part", path)


def table(header: Sequence[str], rows: Sequence[Sequence], left: int = 1) -> str:
    """Text in columns: the first `left` to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place >= left else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def percent(share: float | None) -> str:
    """0.9567 -> "95.7 %"; "" for None."""
    return "" if share is None else f"{100 * share:.1f} %"


def _plain(value):
    """NumPy's numbers as Python's."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"not JSON: {type(value)}")
