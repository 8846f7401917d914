"""Sections about what the tools measured on the exported model."""

from igpt_tf.formatting import few_images_warning, interval_text, percent
from igpt_tf.report.charts import Curve, line_chart
from igpt_tf.report.run_folder import (
    Evaluation,
    Found,
    LinearProbe,
    LowData,
    Result,
    RunFolder,
)

TOOLS = {  # section -> the tool that measures what it shows
    "Samples and completions": "sample",
    "Linear probe": "linear_probe",
    "Few labels": "low_data",
    "Fine-tuning": "finetune",
    "Evaluation": "evaluate",
}


def samples(run: RunFolder) -> list[dict]:
    """Images that tools.sample generated."""
    images = [
        (found.content, f"{kind} ({found.folder})", f"Grid of {kind} of the exported model: {text}")
        for kind, text in (
            ("samples", "images generated from nothing"),
            ("completions", "images of which the model generated the lower half"),
        )
        for found in run.images(f"{kind}.png")
    ]
    return [{"kind": "pictures", "images": images}] if images else []


def linear_probes(run: RunFolder) -> list[dict]:
    """Accuracy of linear classifiers by layer."""
    found = run.results("linear_probe.json", LinearProbe)
    return [block for one in found for block in _linear_probe(one)]


def best_probe(run: RunFolder) -> list[tuple[str, str]]:
    """(name, accuracy) of the first linear probe of a model of this run, if there is one."""
    probes = [
        one.content for one in run.results("linear_probe.json", LinearProbe) if run.is_own(one)
    ]
    return [
        (
            f"linear probe, layer {probe.best_layer.layer}",
            percent(getattr(probe.best_layer, f"{probe.measured_on}_accuracy")),
        )
        for probe in probes[:1]
    ]


def low_data(run: RunFolder) -> list[dict]:
    """Accuracy by number of labels."""
    found = run.results("low_data.json", LowData)
    return [block for one in found for block in _low_data(one)]


def finetunings(run: RunFolder) -> list[dict]:
    """Accuracy after fine-tuning, one row per run."""
    found = [one for one in run.results("result.json", Result) if one.content.accuracy]
    if run.result and run.result.accuracy:
        found.insert(0, Found("this run", run.result))
    if not found:
        return []
    header = ["run", "weights at the start", "L_GEN : L_CLF", "learning rate", "step"]
    header += ["held-out accuracy (95 % interval)", "test accuracy (95 % interval)"]
    images = [
        (
            one.content,
            f"confusion matrix ({one.folder})",
            "Confusion matrix: labels in rows, predictions in columns",
        )
        for one in run.images("confusion.png", own=True)
    ]
    blocks = [{"kind": "table", "header": header, "rows": [_finetuning(one) for one in found]}]
    return blocks + ([{"kind": "pictures", "images": images}] if images else [])


def evaluations(run: RunFolder) -> list[dict]:
    """Losses on data sets, one row per file."""
    found = run.results("evaluate.json", Evaluation)
    header = ["folder", "data", "split", "images", "score", "nats/token (± standard error)"]
    rows = [_evaluation(one) for one in found]
    return [{"kind": "table", "header": header, "rows": rows}] if rows else []


def baseline_name(name: str) -> str:
    """A baseline's name on the page."""
    return "unigram per pixel" if name == "per_position" else name.replace("_", " ")


def split_name(split: str) -> str:
    """A split's name on the page."""
    return {"train": "training", "valid": "held-out"}.get(split, split)


def _linear_probe(found: Found) -> list[dict]:
    probe = found.content
    measure = f"{probe.measured_on}_accuracy"
    best, curves, levels = probe.best_layer.layer, [], []
    curves.append(Curve("pretrained network", _points(probe.layers, measure)))
    rows = [(f"layer {row.layer}" + " (best)" * (row.layer == best), row) for row in probe.layers]
    if probe.concatenated:
        layers = probe.concatenated.layers
        rows.append((f"layers {layers[0]} to {layers[-1]} concatenated", probe.concatenated))
    for name, baseline in probe.baselines.items():
        title, points = baseline_name(name), _points(baseline.layers, measure)
        if len(points) > 1:
            curves.append(Curve(title, points))
            title += f", layer {baseline.layer}"
        else:
            levels += [(title, accuracy) for _, accuracy in points]
        rows.append((title, baseline))
    chart = line_chart(
        "Accuracy by layer (0: embeddings, last: final norm)",
        curves,
        "layer",
        f"{split_name(probe.measured_on)} accuracy (%)",
        levels=levels,
        x_ticks=[(row.layer, str(row.layer)) for row in probe.layers],
    )
    splits = ["valid", "test"] if probe.measured_on == "test" else ["valid"]
    header = ["features", *(f"{split_name(split)} accuracy (95 % interval)" for split in splits)]
    cells = [
        [
            title,
            *(
                _with_interval(getattr(row, f"{split}_accuracy"), getattr(row, f"{split}_interval"))
                for split in splits
            ),
            _number(getattr(row, probe.solver)),
        ]
        for title, row in rows
    ]
    header.append(probe.solver.replace("_", " "))
    return [
        _heading(found),
        *chart,
        {"kind": "table", "header": header, "rows": cells},
        *_notes(probe),
    ]


def _with_interval(accuracy: float | None, interval) -> str:
    """An accuracy with its 95 % interval, if that is known."""
    text = percent(accuracy)
    return f"{text} ({interval_text(interval)})" if text and interval else text


def _points(rows, measure: str) -> list[tuple[int, float]]:
    values = [(row.layer, getattr(row, measure)) for row in rows]
    return [(layer, 100 * value) for layer, value in values if value is not None]


def _low_data(found: Found) -> list[dict]:
    result = found.content
    split, curves = result.measured_on, []
    for name in ("pretrained_network", "raw_pixels"):
        known = [(i, *row.measured(split)) for i, row in enumerate(getattr(result, name))]
        known = [row for row in known if None not in row]
        points = [(i, 100 * accuracy) for i, accuracy, _ in known]
        deviations = [100 * deviation for *_, deviation in known]
        curves.append(Curve(name.replace("_", " "), points, deviations))
    labels = [row.labels_per_class for row in result.pretrained_network]
    chart = line_chart(
        f"Mean and standard deviation of {result.num_subsets} random subsets",
        curves,
        "labels per class",
        f"{split_name(split)} accuracy (%)",
        x_ticks=[(i, f"{count:,}") for i, count in enumerate(labels)],
    )
    rows = [
        [
            f"{row.labels_per_class:,}",
            _spread(row, split),
            _spread(pixels, split),
            _number(row.layer),
        ]
        for row, pixels in zip(result.pretrained_network, result.raw_pixels, strict=False)
    ]
    header = ["labels per class", "pretrained network", "raw pixels", "layer"]
    return [
        _heading(found),
        *chart,
        {"kind": "table", "header": header, "rows": rows},
        *_notes(result),
    ]


def _spread(row, split: str) -> str:
    accuracy, deviation = row.measured(split)
    return percent(accuracy) + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _finetuning(found: Found) -> list[str]:
    result = found.content
    test = _with_interval(result.accuracy.get("test"), result.accuracy_interval.get("test"))
    return [
        found.folder,
        "untrained network" if result.from_scratch else "pretrained network",
        f"{_number(result.generative_weight)} : {_number(result.classification_weight)}",
        _number(result.learning_rate),
        f"{result.step:,}",
        _with_interval(result.accuracy.get("valid"), result.accuracy_interval.get("valid")),
        test + ", refit with the held-out images" * result.refit if test else "no test split",
    ]


def _evaluation(found: Found) -> list[str]:
    result, error = found.content, found.content.standard_error
    nats = f"{result.nats_per_token:.4f}" + (f" ± {error:.4f}" if error is not None else "")
    split = split_name(result.split or "")
    return [found.folder, result.data, split, f"{result.num_images:,}", result.score, nats]


def _heading(found: Found) -> dict:
    result = found.content
    images = ", ".join(f"{n:,} {split_name(split)}" for split, n in result.num_images.items())
    small = (
        f"{result.saved_model}: {result.data.name}, {images} images, {result.num_classes} classes"
    )
    return {"kind": "heading", "text": found.folder, "small": small}


def _notes(result: LinearProbe | LowData) -> list[dict]:
    lines = []
    if result.measured_on == "valid":
        lines.append("There is no test split: layer and setting were chosen by these accuracies.")
    if result.measured_on in result.num_images:
        lines.append(few_images_warning(result.num_images[result.measured_on]))
    return [{"kind": "text", "text": line} for line in lines if line]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
