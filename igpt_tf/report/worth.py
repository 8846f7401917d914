"""What the features are worth: the results of the tools that measure it."""

import os
from collections.abc import Callable

from igpt_tf.formatting import percent
from igpt_tf.report.charts import Series, line_chart
from igpt_tf.report.markup import Markup, join, missing, note, picture, table, tag
from igpt_tf.report.run import Report, Run

_CONFUSION = "confusion.png"
_PART = {"valid": "held-out", "test": "test"}
_NO_TEST = "No test part: these are held-out accuracies, the ones that choices were made by."


def linear_probes(run: Run) -> Markup:
    """Accuracy by layer."""
    return _each(run, "linear_probe.json", _linear_probe, "linear probe", "tools.linear_probe")


def low_data(run: Run) -> Markup:
    """Accuracy by number of labels."""
    return _each(run, "low_data.json", _low_data, "low-data measurement", "tools.low_data")


def evaluations(run: Run) -> Markup:
    """Losses on data sets."""
    return _each(run, "evaluate.json", _evaluation, "evaluation", "tools.evaluate")


def finetunings(run: Run) -> Markup:
    """Accuracy after fine-tuning, one row a run."""
    own = Report("this run", run.result or {})
    results = [one for one in (own, *run.reports("result.json")) if "accuracy" in one.content]
    if not results:
        return missing("No fine-tuning was found (python -m tools.finetune).")
    header = ["run", "weights at the start", "L_GEN : L_CLF", "rate", "step", "held-out", "test"]
    own_picture = os.path.join(run.path, _CONFUSION)
    paths = [path for path in (own_picture, *run.pictures(_CONFUSION)) if os.path.isfile(path)]
    figures = [picture(path, os.path.basename(os.path.dirname(path))) for path in paths]
    rows = _read(lambda _: table(header, map(_finetuned, results)), own)
    return join([rows, tag("div", figures, class_="pictures") if figures else None])


def best_probe(run: Run) -> tuple[float, int] | None:
    """(accuracy, layer) of the first linear probe of a model of this run."""
    for report in run.reports("linear_probe.json"):
        try:
            if not run.made(report):
                continue
            best = report.content["best_layer"]
            return best[f"{report.content['measured_on']}_accuracy"], best["layer"]
        except (KeyError, TypeError):
            continue
    return None


def _each(run: Run, file: str, show: Callable, said: str, tool: str) -> Markup:
    reports = run.reports(file)
    if not reports:
        return missing(f"No {said} was found (python -m {tool}).")
    return join(_read(show, report) for report in reports)


def _read(show: Callable[[Report], Markup], report: Report) -> Markup:
    """What `show` makes of a file; a file of another make is named instead."""
    try:
        return show(report)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return missing(f"The file in {report.folder} could not be understood.")


def _head(report: Report) -> Markup:
    content = report.content
    sizes = ", ".join(
        f"{number:,} {_PART.get(k, k)}" for k, number in content["num_images"].items()
    )
    said = f"{content['data']['name']}, {sizes} images of {content['num_classes']} classes"
    return tag("h3", report.folder, tag("small", f" {content['saved_model']}: {said}"))


def _linear_probe(report: Report) -> Markup:
    content, part = report.content, report.content["measured_on"]
    measure, best = f"{part}_accuracy", report.content["best_layer"]["layer"]
    layers = content["layers"]
    curves = [Series("pretrained network", _points(layers, measure))]
    levels, rows = [], [(f"layer {row['layer']}", row) for row in layers]
    rows[best] = (f"layer {best} (best held-out)", layers[best])
    if content.get("concatenated"):
        side = content["concatenated"]["layers"]
        rows.append((f"layers {side[0]} to {side[-1]} side by side", content["concatenated"]))
    for name, row in content["baselines"].items():
        title = name.replace("_", " ")
        rows.append((title + (f", layer {row['layer']}" if len(row["layers"]) > 1 else ""), row))
        if len(row["layers"]) > 1:
            curves.append(Series(title, _points(row["layers"], measure)))
        else:
            levels.append((f"{title}", 100 * row[measure]))
    chart = line_chart(
        "Accuracy by layer (0: embeddings, last: final norm)",
        curves,
        x_label="layer",
        y_label=f"{_PART[part]} accuracy (%)",
        levels=levels,
        x_ticks=[(row["layer"], str(row["layer"])) for row in layers],
    )
    return join([_head(report), chart, _accuracies(rows, part, content["solver"])])


def _accuracies(rows, part: str, solver: str) -> Markup:
    parts = ["valid", "test"] if part == "test" else ["valid"]
    header = ["features", *(f"{_PART[one]} accuracy" for one in parts), solver.replace("_", " ")]
    cells = [
        [title, *(percent(row[f"{one}_accuracy"]) for one in parts), f"{row[solver]:g}"]
        for title, row in rows
    ]
    remark = note(_NO_TEST) if part == "valid" else None
    return join([table(header, cells), remark])


def _points(rows, measure: str) -> list[tuple[float, float]]:
    return [(row["layer"], 100 * row[measure]) for row in rows]


def _low_data(report: Report) -> Markup:
    content, part = report.content, report.content["measured_on"]
    names = ("pretrained_network", "raw_pixels")
    counts = [row["labels_per_class"] for row in content[names[0]]]
    curves = [
        Series(
            name.replace("_", " "),
            [(i, 100 * row[f"{part}_accuracy"]) for i, row in enumerate(content[name])],
            [100 * row[f"{part}_deviation"] for row in content[name]],
        )
        for name in names
    ]
    chart = line_chart(
        f"Few labels: mean and deviation of {content['num_subsets']} subsets",
        curves,
        x_label="labels per class",
        y_label=f"{_PART[part]} accuracy (%)",
        x_ticks=[(i, str(count)) for i, count in enumerate(counts)],
    )
    rows = [
        [k, *(_spread(content[name][i], part) for name in names), content[names[0]][i]["layer"]]
        for i, k in enumerate(counts)
    ]
    cells = table(["labels per class", "pretrained network", "raw pixels", "layer"], rows)
    return join([_head(report), chart, cells, note(_NO_TEST) if part == "valid" else None])


def _spread(row: dict, part: str) -> str:
    return f"{percent(row[f'{part}_accuracy'])} ± {100 * row[f'{part}_deviation']:.1f}"


def _finetuned(report: Report) -> list:
    content = report.content
    weights = f"{content['generative_weight']:g} : {content['classification_weight']:g}"
    return [
        report.folder,
        "fresh" if content["from_scratch"] else "pretrained",
        weights,
        f"{content['learning_rate']:g}",
        f"{content['step']:,}",
        percent(content["accuracy"]["valid"]),
        percent(content["accuracy"].get("test")) or "no test part",
    ]


def _evaluation(report: Report) -> Markup:
    content = report.content
    error = content.get("standard_error")
    loss = f"{content['nats_per_token']:.4f}" + (f" ± {error:.4f}" if error is not None else "")
    part = _PART.get(content.get("split"), content.get("split") or "")
    header = ["folder", "data", "part", "images", "nats/token"]
    return table(
        header, [[report.folder, content["data"], part, f"{content['num_images']:,}", loss]]
    )
