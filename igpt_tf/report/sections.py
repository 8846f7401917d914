"""What pretraining and fine-tuning themselves left: set-up, curves, pictures, speed."""

import os
import statistics
from collections.abc import Iterator

from igpt_tf.formatting import percent
from igpt_tf.report.charts import Series, line_chart
from igpt_tf.report.markup import Markup, facts, join, missing, note, picture, tag
from igpt_tf.report.run import Run

_MOST_GRIDS = 6
_BASELINES = {
    "uniform": "every colour alike",
    "unigram": "colour frequencies",
    "per_position": "frequencies at each pixel",
}


def set_up(run: Run) -> Markup:
    """Command, configuration, versions, hardware."""
    start = run.starts[-1] if run.starts else {}
    versions = start.get("versions") or (run.metadata or {}).get("versions")
    pairs = [
        ("command", tag("code", start["command"]) if "command" in start else None),
        ("first start", run.starts[0].get("started") if run.starts else None),
        ("starts", len(run.starts) if len(run.starts) > 1 else None),
        *((name.replace("_", " "), _plain(run.binding(gin))) for name, gin in _BINDINGS.items()),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items()) if versions else None),
        *_hardware(start.get("hardware")),
    ]
    parts = [facts(pairs)]
    if not run.starts:
        parts.append(missing("Command and hardware are not recorded: no environment.jsonl."))
    if run.config:
        summary = tag("summary", "the whole configuration (operative_config.gin)")
        parts.append(tag("details", summary, tag("pre", run.config)))
    else:
        parts.append(missing("The configuration is not recorded: no operative_config.gin."))
    return join(parts)


_BINDINGS = {
    "data": "train.source",
    "objective": "train.objective",
    "layers": "build_model.num_layers",
    "width": "build_model.hidden_dim",
    "heads": "build_model.num_heads",
    "vocabulary_size": "build_model.vocabulary_size",
    "steps": "train.num_steps",
    "batch_size": "train.batch_size",
    "learning_rate": "build_optimizer.learning_rate",
    "seed": "train.seed",
    "fine-tuned from": "finetune.saved_model",
    "fine-tuning_steps": "finetune.num_steps",
    "fine-tuning_batch_size": "finetune.batch_size",
    "fine-tuning_rates": "finetune.learning_rates",
}


def curves(run: Run) -> Markup:
    """Everything that was measured along the steps."""
    charts = [
        _chart(run, "nats_per_token", "Loss", "nats/token", _levels(run)),
        _chart(run, "loss", "Joint loss in training", "loss"),
        _chart(run, "accuracy", "Held-out accuracy while fine-tuning", "accuracy (%)", percents=1),
        _chart(run, "probe_accuracy", "Online probe, best layer", "accuracy (%)", percents=1),
    ]
    charts = [chart for chart in charts if chart]
    if not charts:
        return missing("Nothing was reported yet: metrics.jsonl has no losses.")
    if not run.result:
        charts.append(missing("The baselines are measured when the run ends; it has not."))
    elif any(run.curve(split, "probe_accuracy") for split in ("valid", "probe")):
        charts.append(note("The online probe is quick, not exact: ridge regression on a subset."))
    return join(charts)


def _chart(run, measure, title, y_label, levels=(), percents=0) -> Markup | None:
    scale = 100 if percents else 1
    # Older runs have the online probe's lines under a split of its own.
    series = [
        Series(name, [(step, scale * value) for step, value in run.curve(split, measure)])
        for split, name in (("train", "training"), ("valid", "held-out"), ("probe", "held-out"))
    ]
    series = [one for one in series if one.points]
    if not series:
        return None
    return line_chart(title, series, x_label="step", y_label=y_label, levels=levels)


def _levels(run: Run) -> list[tuple[str, float]]:
    baselines = (run.result or {}).get("baselines") or {}
    return [
        (f"{name.replace('_', ' ')}, {said}", baselines[name])
        for name, said in _BASELINES.items()
        if name in baselines
    ]


def grids(run: Run) -> Markup:
    """Pictures drawn in training, first to last."""
    drawn = run.grids()
    if not drawn:
        return missing("No pictures were drawn in training (intervals.sample_every).")
    last = len(drawn) - 1
    count = min(_MOST_GRIDS, len(drawn))
    chosen = sorted({round(i * last / max(count - 1, 1)) for i in range(count)})
    figures = [picture(drawn[i][1], f"step {drawn[i][0]:,}") for i in chosen]
    said = (
        "Held-out images, below them the model's completions of their upper halves; then samples, "
        "where the objective makes any. The same noise at every step."
    )
    return join([note(said), tag("div", figures, class_="pictures")])


def painted(run: Run) -> Markup:
    """What tools.sample made of the exported model."""
    figures = [
        picture(path, f"{said} ({os.path.basename(os.path.dirname(path))})")
        for file, said in (("samples.png", "samples"), ("completions.png", "completions"))
        for path in run.pictures(file)
    ]
    if not figures:
        return missing("No samples or completions of the exported model (python -m tools.sample).")
    return tag("div", figures, class_="pictures")


def throughput(run: Run) -> Markup:
    """How fast it went."""
    speeds = run.curve("train", "images_per_second")
    if not speeds:
        return missing("No speed was reported yet.")
    tokens = [value for _, value in run.curve("train", "tokens_per_second")]
    waits = [value for _, value in run.curve("train", "data_wait")]
    memory = [value for _, value in run.curve("train", "peak_memory_gb")]
    pairs = [
        ("median", f"{median_speed(run):,.0f} images/s"),
        ("median", f"{statistics.median(tokens):,.0f} tokens/s" if tokens else None),
        ("waiting for data", percent(statistics.median(waits)) if waits else None),
        ("peak memory", f"{max(memory):.2f} GB" if memory else None),
    ]
    chart = line_chart(
        "Training speed, evaluations and pictures left out",
        [Series("images/s", speeds)],
        x_label="step",
        y_label="images/s",
        from_zero=True,
    )
    return join([facts(pairs), chart])


def median_speed(run: Run) -> float | None:
    """Images a second."""
    speeds = [value for _, value in run.curve("train", "images_per_second")]
    return statistics.median(speeds) if speeds else None


def _plain(value: str | None) -> str | None:
    """gin's text without its signs: "@digits()" -> "digits"."""
    return value and value.removeprefix("@").removesuffix("()").strip("'")


def _hardware(hardware: dict | None) -> Iterator[tuple[str, object]]:
    if not hardware:
        return
    yield "processor", hardware.get("cpu")
    yield "cores", hardware.get("cores")
    memory = hardware.get("memory_gb")
    yield "memory", f"{memory} GB" if memory else None
    yield "accelerators", ", ".join(hardware.get("accelerators") or []) or "none"
