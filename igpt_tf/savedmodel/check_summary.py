"""A check's report as lines for the terminal."""

import itertools

from igpt_tf.formatting import table

_HEADER = ("signature", "inputs", "outputs", "first ms", "second ms", "ok")


def of_check(report: dict) -> str:
    """What was loaded, then a table with a signature's inputs and outputs below each other."""
    rows = [line for row in report["signatures"] for line in _lines(row)]
    return (
        f"{report['path']}: {report['kind']} model of step {report['step']}, loaded by TensorFlow "
        f"{report['tensorflow']}'s C library in {report['load_milliseconds']:.0f} ms; "
        f"{report['num_warmup_records'] or 'no'} warm-up records\n\n" + table(_HEADER, rows, left=3)
    )


def of_problems(report: dict) -> str:
    """The breaches of the contract, the first in full."""
    first, *others = report["problems"]
    more = f", and {len(others)} more: see the report" if others else ""
    return f"the SavedModel breaks the contract: {first}{more}. Received: path={report['path']}"


def _lines(row: dict) -> list[tuple]:
    both = (_words(row["inputs"]), _words(row["outputs"]))
    words = list(itertools.zip_longest(*both, fillvalue="")) or [("", "")]
    times = [f"{value:.1f}" for value in row["milliseconds"]] or ["", ""]
    ends = [(*times, "no" if row["problems"] else "yes")] + [("", "", "")] * (len(words) - 1)
    names = [row["name"]] + [""] * (len(words) - 1)
    return [(name, *word, *end) for name, word, end in zip(names, words, ends, strict=True)]


def _words(specs: dict[str, str]) -> list[str]:
    return [f"{name} {spec}" for name, spec in specs.items()]
