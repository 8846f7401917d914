"""The page: a headline, the figures that matter, the sections."""

import datetime
import os
from collections.abc import Sequence

from igpt_tf.errors import InputError
from igpt_tf.report import sections, worth
from igpt_tf.report.card import card
from igpt_tf.report.markup import Markup, join, tag
from igpt_tf.report.run import Run, read_run

FILE = "report.html"
_STYLE = os.path.join(os.path.dirname(__file__), "style.css")
# Nothing is loaded from anywhere; the browser is told so.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SECTIONS = {
    "What was run": sections.set_up,
    "Curves": sections.curves,
    "Pictures over time": sections.grids,
    "Samples and completions": sections.painted,
    "Linear probe": worth.linear_probes,
    "Low data": worth.low_data,
    "Fine-tuning": worth.finetunings,
    "Evaluation": worth.evaluations,
    "Throughput": sections.throughput,
    "Model card": card,
}


def write_page(workdir: str, include: Sequence[str] = ()) -> str:
    """Writes `report.html` into a run's folder.

    Args:
        workdir: The run's folder, finished or not.
        include: More folders with results of tools.

    Returns:
        The page's path.

    Raises:
        InputError: A folder does not exist, is no run's, or cannot be written to.
    """
    path = os.path.join(workdir, FILE)
    text = page(read_run(workdir, include))
    try:
        with open(path + ".part", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(path + ".part", path)
    except OSError as error:
        raise InputError(
            f"the report cannot be written ({error.strerror}). Received: {path}"
        ) from None
    return path


def page(run: Run) -> str:
    """The whole HTML of a run."""
    bodies = [
        tag("section", tag("h2", title), show(run), id=_anchor(title))
        for title, show in _SECTIONS.items()
    ]
    links = tag("nav", (tag("a", title, href=f"#{_anchor(title)}") for title in _SECTIONS))
    made = datetime.datetime.now().isoformat(sep=" ", timespec="minutes")
    footer = tag("footer", f"Made {made} by tools.report from {run.path}")
    body = tag("body", tag("main", _headline(run), links, bodies, footer))
    return "<!doctype html>\n" + tag("html", _head(run.name), body, lang="en")


def _head(name: str) -> Markup:
    with open(_STYLE, encoding="utf-8") as file:
        style = Markup(file.read())
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{name} - igpt_tf"),
        tag("style", style),
    )


def _headline(run: Run) -> Markup:
    steps = run.binding("train.num_steps") or run.binding("finetune.num_steps")
    of_all = f" of {int(steps):,}" if steps and steps.isdigit() else ""
    state = "finished" if run.result else f"unfinished: step {run.last_step:,}{of_all}"
    badge = tag("span", state, class_="badge" if run.result else "badge unfinished")
    return tag("header", tag("h1", run.name, " ", badge), tag("dl", _figures(run), class_="tiles"))


def _figures(run: Run) -> Markup:
    """The few numbers that one asks for first."""
    heldout, probe = run.curve("valid", "nats_per_token"), worth.best_probe(run)
    best = min(heldout, key=lambda point: point[1]) if heldout else None
    test = ((run.result or {}).get("nats_per_token") or {}).get("test")
    speed, parameters = sections.median_speed(run), (run.result or {}).get("parameters")
    accuracy = (run.result or {}).get("accuracy") or {}
    figures = [
        ("held-out nats/token", f"{best[1]:.3f}" if best else None),
        ("at step", f"{best[0]:,}" if best else None),
        ("test nats/token", f"{test:.3f}" if test is not None else None),
        *(
            (f"{'held-out' if part == 'valid' else part} accuracy", f"{100 * share:.1f} %")
            for part, share in accuracy.items()
        ),
        ("weights", f"{parameters:,}" if parameters else None),
        ("images/s", f"{speed:,.0f}" if speed else None),
        (f"linear probe, layer {probe[1]}", f"{100 * probe[0]:.1f} %") if probe else ("", None),
    ]
    return join(
        tag("div", tag("dt", name), tag("dd", value))
        for name, value in figures
        if value is not None
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
