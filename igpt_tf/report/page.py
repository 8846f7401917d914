"""The page of a run: its sections as blocks, which the template `report.html` lays out.

A block is a dictionary: "kind" names the template's macro, the other items are its contents.
"""

import datetime
import os
import re
import reprlib
import shlex
import statistics
from collections.abc import Sequence

import jinja2

from igpt_tf.errors import InputError
from igpt_tf.files import write_text
from igpt_tf.formatting import percent
from igpt_tf.report import tool_results
from igpt_tf.report.charts import Curve, line_chart
from igpt_tf.report.run_folder import RunFolder
from igpt_tf.report.tool_results import baseline_name, split_name

FILE = "report.html"
_MAX_GRIDS = 6
_SETTINGS = {  # bindings of the configuration -> names on the page
    "train.objective": "objective",
    "build_model.num_layers": "layers",
    "build_model.hidden_dim": "width",
    "build_model.num_heads": "heads",
    "build_model.vocabulary_size": "vocabulary size",
    "train.num_steps": "steps",
    "train.batch_size": "batch size",
    "build_optimizer.learning_rate": "learning rate",
    "train.seed": "seed",
    "finetune.saved_model": "fine-tuned from",
    "finetune.num_steps": "steps of fine-tuning",
    "finetune.batch_size": "batch size of fine-tuning",
    "finetune.learning_rates": "learning rates of fine-tuning",
}
_SHORTENED = reprlib.Repr()  # of arguments of any depth and length
_SHORTENED.maxdict, _SHORTENED.maxstring = 20, 200


def write_report(workdir: str, include: Sequence[str] = ()) -> str:
    """Writes `report.html` into a run's folder.

    Args:
        workdir: The run's folder, finished or not.
        include: More folders with results of tools.

    Returns:
        The page's path.

    Raises:
        InputError: A folder does not exist, is not a run's or cannot be written.
    """
    path = os.path.join(workdir, FILE)
    html = render(RunFolder(workdir, include))
    try:
        write_text(path, html)
    except OSError as error:
        raise InputError(
            f"the report cannot be written ({error.strerror}). Received: {path}"
        ) from None
    return path


def render(run: RunFolder) -> str:
    """The HTML of a run."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("igpt_tf.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = {
        "What was run": _what_was_run(run),
        "Curves": _curves(run),
        "Sample images during training": _sample_grids(run),
        "Samples and completions": tool_results.samples(run),
        "Linear probe": tool_results.linear_probes(run),
        "Few labels": tool_results.low_data(run),
        "Fine-tuning": tool_results.finetunings(run),
        "Evaluation": tool_results.evaluations(run),
        "Throughput": _throughput(run),
        "Model card": _model_card(run),
    }
    tiles = _tiles(run)
    if run.unreadable:  # complete once every section has read its files
        unreadable = {"kind": "points", "lines": list(dict.fromkeys(run.unreadable))}
        sections = {"Files that cannot be read": [unreadable], **sections}
    missing = [title for title in tool_results.TOOLS if not sections[title]]
    html = environment.get_template("report.html").render(
        run=run,
        state=_state(run),
        tiles=tiles,
        sections={title: blocks for title, blocks in sections.items() if blocks},
        commands={title: _command(run, tool_results.TOOLS[title]) for title in missing},
        now=_time(datetime.datetime.now()),
    )
    return html.encode("utf-8", "replace").decode()  # names of files need not be Unicode


def _state(run: RunFolder) -> str:
    if run.result:
        return "finished"
    steps = run.bindings.get("train.num_steps") or run.bindings.get("finetune.num_steps")
    return f"unfinished: step {run.last_step:,}" + (f" of {_grouped(steps)}" if steps else "")


def _tiles(run: RunFolder) -> list[tuple[str, str]]:
    """The numbers at the top of the page."""
    tiles, heldout = [], run.series("valid", "nats_per_token")
    loss = _loss_name(run)
    if heldout:
        step, nats = min(heldout, key=lambda point: point[1])
        tiles += [(f"held-out {loss}", f"{nats:.3f}"), ("at step", f"{step:,}")]
    if run.result:
        if "test" in run.result.nats_per_token:
            tiles.append((f"test {loss}", f"{run.result.nats_per_token['test']:.3f}"))
        for split, accuracy in run.result.accuracy.items():
            tiles.append((f"{split_name(split)} accuracy", percent(accuracy)))
        if run.result.parameters is not None:
            tiles.append(("weights", f"{run.result.parameters:,}"))
    speeds = [value for _, value in run.series("train", "images_per_second")]
    if speeds:
        tiles.append(("images/s", f"{statistics.median(speeds):,.0f}"))
    return tiles + tool_results.best_probe(run)


def _what_was_run(run: RunFolder) -> list[dict]:
    start = run.starts[-1] if run.starts else None
    hardware = start.hardware if start else None
    source = run.bindings.get("train.source", "").strip("@()")
    size = _size(run.metadata) if run.metadata else run.bindings.get(f"{source}.image_size")
    images = run.result.num_images if run.result else {}
    rows = [
        ("first start", start and _time(run.starts[0].started)),
        ("starts", len(run.starts) if len(run.starts) > 1 else None),
        ("data", source),
        ("folder", run.bindings.get(f"{source}.directory", "").strip("'")),
        ("image size", size),
        ("images", ", ".join(f"{count:,} {split_name(split)}" for split, count in images.items())),
    ]
    for key, name in _SETTINGS.items():
        value = run.bindings.get(key, "").strip("@()'")
        rows.append((name, value if name == "seed" else _grouped(value)))
    if start:
        rows.append(("versions", ", ".join(f"{k} {v}" for k, v in start.versions.items())))
    if hardware:
        rows += [
            ("processor", hardware.cpu),
            ("cores", hardware.cores),
            ("memory", hardware.memory_gb and f"{hardware.memory_gb:g} GB"),
            ("accelerators", ", ".join(hardware.accelerators) or "none"),
        ]
    blocks = [{"kind": "pairs", "rows": rows}]
    if start:
        lines = re.sub(" (?='?--)", " \\\\\n  ", start.command)  # one line per flag
        blocks.append({"kind": "pre", "summary": "Command", "text": lines, "open": True})
    else:
        text = "Command and hardware are not recorded: there is no environment.jsonl."
        blocks.append({"kind": "text", "text": text})
    if run.config:
        summary = "Configuration (operative_config.gin)"
        blocks.append({"kind": "pre", "summary": summary, "text": run.config, "open": False})
    else:
        text = "The configuration is not recorded: there is no operative_config.gin."
        blocks.append({"kind": "text", "text": text})
    return blocks


def _curves(run: RunFolder) -> list[dict]:
    baselines = run.result.baselines if run.result else {}
    levels = [(baseline_name(name), value) for name, value in baselines.items()]
    accuracy = "accuracy (%)"
    blocks = []
    for measure, title, y_label, scale in (
        ("nats_per_token", "Loss", _loss_name(run), 1),
        ("loss", "Joint loss of fine-tuning", "loss", 1),
        ("accuracy", "Accuracy during fine-tuning", accuracy, 100),
        ("probe_accuracy", "Online probe of the best layer", accuracy, 100),
    ):
        curves = [
            Curve(name, [(step, scale * value) for step, value in run.series(split, measure)])
            for split, name in (("train", "training"), ("valid", "held-out"))
        ]
        shown = levels if measure == "nats_per_token" else ()
        blocks += line_chart(title, curves, "step", y_label, levels=shown)
    if not blocks:
        return [{"kind": "text", "text": "No losses were logged yet."}]
    if not run.result:
        blocks.append({"kind": "text", "text": "The end of the run measures the baselines."})
    if run.series("valid", "probe_accuracy"):
        text = "The online probe is approximate: ridge regression on a subset of the images."
        blocks.append({"kind": "text", "text": text})
    return blocks


def _sample_grids(run: RunFolder) -> list[dict]:
    grids = run.sample_grids(_MAX_GRIDS)
    if not grids:
        return []
    contents = (
        "held-out images above the model's completions of their upper halves, then samples if the "
        "objective generates any"
    )
    images = [
        (image, f"step {step:,}", f"Grid of images at step {step:,}: {contents}")
        for step, image in grids
    ]
    text = f"Each grid shows {contents}. All steps use the same random numbers."
    return [{"kind": "text", "text": text}, {"kind": "pictures", "images": images}]


def _throughput(run: RunFolder) -> list[dict]:
    speeds = run.series("train", "images_per_second")
    tokens, waits, memory = (
        [value for _, value in run.series("train", name)]
        for name in ("tokens_per_second", "data_wait", "peak_memory_gb")
    )
    rows = [
        ("images/s, median", speeds and f"{statistics.median(y for _, y in speeds):,.0f}"),
        ("tokens/s, median", tokens and f"{statistics.median(tokens):,.0f}"),
        ("time waiting for data", waits and percent(statistics.median(waits))),
        ("peak memory", memory and f"{max(memory):.2f} GB"),
    ]
    title = "Training speed, without evaluations and sample images"
    chart = line_chart(title, [Curve("training", speeds)], "step", "images/s", from_zero=True)
    return [{"kind": "pairs", "rows": rows}, *chart] if chart else []


def _model_card(run: RunFolder) -> list[dict]:
    metadata = run.metadata
    if metadata is None:
        return []
    model, size = metadata["model"], _size(metadata)
    use = "features for classifiers, generated images, scores of images"
    if metadata["task"]:
        use = "classification of images like those of its fine-tuning"
    units = (
        "Losses are nats per palette token, not bits per RGB dimension: the palette is lossy. "
        "Durations are optimizer steps; batch sizes are global."
    )
    data = metadata["data"]
    arguments = _SHORTENED.repr(data["arguments"]) if data else ""
    rows = [
        (
            "model",
            f"Image GPT (Chen et al., 2020), {model['num_layers']} layers of width "
            f"{model['hidden_dim']}, {model['num_heads']} heads",
        ),
        ("exported step", f"{metadata['step']:,}"),
        ("objective of training", metadata["objective"]["name"]),
        ("input", f"{size} pixels in {model['vocabulary_size']} colours"),
        ("trained on", f"{data['name']} {arguments}" if data else "not recorded"),
        ("classes in the data", ", ".join(metadata["class_names"] or ())),
        ("intended use", f"{use}; research and teaching"),
        ("palette", metadata["palette"]),
        ("units", units),
        ("license", "to be filled in: licenses of the weights and of the training images"),
        ("contact", "to be filled in"),
    ]
    limits = [
        f"The model sees {size} pixels in a fixed palette: finer detail and other colours are "
        "lost.",
        "It models images like those that it was trained on, with their gaps and biases. Generated "
        "images may resemble single training images.",
        "The numbers on this page hold for the data named beside them. The model is not made for "
        "decisions about people.",
    ]
    if metadata["score"] == "pseudo-likelihood":
        limits.append("Its scores are pseudo-likelihoods, which compare only with each other.")
    if metadata["task"]:
        limits.append("It assigns one of its classes to every image, even if none applies.")
    return [{"kind": "pairs", "rows": rows}, {"kind": "points", "lines": limits}]


def _loss_name(run: RunFolder) -> str:
    """The loss of a masked model covers hidden tokens only, unlike its score."""
    is_masked = "masked" in run.bindings.get("train.objective", "")
    return "nats/hidden token" if is_masked else "nats/token"


def _grouped(value: str) -> str:
    """ "1500" -> "1,500"; other values as they are."""
    return f"{int(value):,}" if value.isdecimal() else value


def _time(time: datetime.datetime | None) -> str:
    """ "24 November 2026, 10:11 UTC"."""
    return f"{time:%-d %B %Y, %H:%M %Z}".strip() if time else ""


def _size(metadata: dict) -> str:
    return "x".join(map(str, metadata["model"]["image_size"]))


def _command(run: RunFolder, tool: str) -> str:
    model, workdir = os.path.join(run.path, "export"), os.path.join(run.path, tool)
    arguments = [f"--saved_model={model}", f"--workdir={workdir}"]
    return shlex.join(["python", "-m", f"tools.{tool}", *arguments])
