"""Tests of the report: one escaped file, and a page whatever the files of the run contain."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from igpt_tf.errors import InputError
from igpt_tf.image_grid import write_png
from igpt_tf.report.charts import Curve, LineChart, line_chart
from igpt_tf.report.page import write_report
from tests import programs

VOID = {"img", "meta"}
HOSTILE = '<script>alert("1 & 2 $x$")</script>'
TOOLS = ("samples and completions", "linear probe", "few labels", "fine-tuning", "evaluation")


class Checker(HTMLParser):
    """Checks that elements are closed in order; collects attributes, text and names of rows."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text, self.tags = [], [], "", set()
        self.tables, self.svg_text = [], ""

    def handle_starttag(self, name, attributes):
        self.tags.add(name)
        self.attributes += attributes
        if name not in VOID:
            self.open.append(name)
        if name == "tbody":
            self.tables.append([])
        if name == "th" and ("scope", "row") in attributes:
            self.tables[-1].append("")

    def handle_startendtag(self, name, attributes):
        self.tags.add(name)
        self.attributes += attributes

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if "svg" in self.open:
            self.svg_text += data
        else:
            self.text += data
        if self.open[-1:] == ["th"] and "tbody" in self.open:
            self.tables[-1][-1] += data


def parse(path):
    with open(path, encoding="utf-8") as file:
        checker = Checker()
        checker.feed(file.read())
    assert checker.open == []
    return checker


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def lines(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


@pytest.fixture
def unfinished(tmp_path):
    """A run of some steps, without a result."""
    run = tmp_path / "run"
    config = (
        "train.num_steps = 9000\ntrain.source = @image_folder()\ntrain.batch_size = 64\n"
        "image_folder.directory = 'pictures'\nimage_folder.image_size = (8, 8)\n"
    )
    write(run / "operative_config.gin", config)
    train = [
        {"step": s, "split": "train", "nats_per_token": 3 - s / 100, "images_per_second": 50.0}
        for s in (50, 100)
    ]
    valid = {"step": 100, "split": "valid", "nats_per_token": 2.25}
    probe = {"step": 100, "split": "valid", "probe_accuracy": 0.5, "probe_layer": 1}
    write(run / "metrics.jsonl", lines(*train, valid, probe))
    return run


@pytest.fixture
def finished(unfinished):
    """The same with every file that a run and the tools write."""
    run, data = unfinished, {"name": "digits", "arguments": {"heldout": 0.2}}
    nats, baselines = {"valid": 2.25}, {"uniform": 2.833, "unigram": 2.5, "per_position": 2.4}
    result = {"step": 100, "nats_per_token": nats, "baselines": baselines, "parameters": 1234}
    result["num_images"] = {"train": 1437, "valid": 360}
    write(run / "result.json", result)
    start = {"started": "2026-01-02T13:45:06+00:00", "command": HOSTILE, "versions": {"keras": "3"}}
    hardware = {"cpu": "Abacus", "cores": 2, "memory_gb": 24.0, "accelerators": []}
    write(run / "environment.jsonl", lines({**start, "hardware": hardware}))
    model = {"image_size": [8, 8], "vocabulary_size": 17, "num_layers": 1, "hidden_dim": 8}
    model |= {"num_heads": 2, "causal": True}
    metadata = {"model": model, "data": data, "class_names": [HOSTILE, "b"], "step": 100}
    metadata |= {"objective": {"name": "autoregressive"}, "task": None, "palette": "0123"}
    metadata |= {"score": "likelihood", "completion": "raster order"}
    write(run / "export" / "100" / "assets" / "metadata.json", metadata)
    write_png(str(run / "samples" / "step_100.png"), np.zeros((9, 9, 3), "uint8"))
    common = {"data": data, "num_images": {"train": 9, "valid": 5}, "num_classes": 2}
    common |= {"measured_on": "valid", "saved_model": "m"}
    layers = [{"layer": i, "valid_accuracy": a, "l2": 0.1} for i, a in enumerate((0.61, 0.72))]
    raw = {**layers[0], "layers": layers[:1]}
    layers[1]["valid_interval"] = [0.625, 0.8]
    untrained = {**layers[0], "layers": layers}
    probe = {"solver": "l2", "layers": layers, "best_layer": layers[1], "concatenated": None}
    probe["baselines"] = {"raw_pixels": raw, "untrained_network": untrained, HOSTILE: raw}
    write(run / "linear_probe" / "linear_probe.json", {**common, **probe})
    few = [{"labels_per_class": 4, "layer": 1, "valid_accuracy": 0.43, "valid_deviation": 0.021}]
    few = {"num_subsets": 5, "pretrained_network": few, "raw_pixels": few}
    write(run / "low_data" / "low_data.json", {**common, **few})
    tuned = {"generative_weight": 1, "classification_weight": 1, "learning_rate": 0.003}
    tuned["accuracy_interval"] = {"valid": [0.61, 0.97]}
    tuned |= {"from_scratch": True, "step": 50, "accuracy": {"valid": 0.875, "test": 0.75}}
    tuned["refit"] = True
    write(run / "finetune" / "result.json", tuned)
    return run


def test_a_finished_run_is_shown_completely(finished):
    page = parse(write_report(str(finished)))
    for expected in (
        "finished",
        "Abacus",
        "keras 3",
        "2 January 2026, 13:45 UTC",
        "9,000",
        "pictures",
        "8x8",
        "1,437 training, 360 held-out",
        "layer 1 (best)",
        "72.0 % (62.5 to 80.0 %)",
        "43.0 % ± 2.1",
        "untrained network",
        "87.5 % (61.0 to 97.0 %)",
        "75.0 %, refit with the held-out images",
        "50",
        "measured on 5 images only",
        "digits {'heldout': 0.2}",
        "to be filled in",
    ):
        assert expected in page.text, expected
    assert "unigram per pixel 2.4" in page.svg_text.replace("\n", " ")
    assert "Not measured yet: samples and completions, evaluation" in page.text
    assert "cannot be read" not in page.text


def test_rows_of_a_table_have_different_names(finished):
    for rows in parse(write_report(str(finished))).tables:
        assert len(rows) == len(set(rows)), rows


def test_charts_and_images_are_described_for_readers_who_do_not_see_them(finished):
    page = parse(write_report(str(finished)))
    charts = [value for name, value in page.attributes if name == "aria-label"]
    assert (
        "Line chart of nats/token over step: training from 2.5 at 50 to 2 at 100; held-out from "
        "2.25 at 100 to 2.25 at 100; uniform at 2.833; unigram at 2.5; unigram per pixel at 2.4."
    ) in charts
    images = [value for name, value in page.attributes if name == "alt"]
    assert images and all(len(text.split()) > 5 for text in images)


def test_the_page_uses_no_network_and_no_script(finished):
    page = parse(write_report(str(finished)))
    assert not page.tags & {"script", "link", "iframe"}
    used = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert used and all(value.startswith(("data:image/png;base64,", "#")) for value in used)
    html = (finished / "report.html").read_text()
    assert not re.findall(r"@import|url\((?!#)", html)


def test_text_of_files_is_escaped(finished):
    page = parse(write_report(str(finished)))
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) == 3  # command, class, row of the linear probe
    assert HOSTILE in page.svg_text  # level of the linear probe


def test_an_unfinished_run_shows_what_is_missing(unfinished):
    text = parse(write_report(str(unfinished))).text
    assert "unfinished: step 100 of 9,000" in text
    assert "The end of the run measures the baselines." in text
    assert "Command and hardware are not recorded: there is no environment.jsonl." in text
    assert f"Not measured yet: {', '.join(TOOLS)}" in text
    command = f"tools.linear_probe --saved_model={unfinished}/export --workdir={unfinished}/linear"
    assert command in text
    assert "Model card" not in text


def test_a_run_that_has_logged_nothing_has_a_page(tmp_path):
    write(tmp_path / "metrics.jsonl", "")
    assert "No losses were logged yet." in parse(write_report(str(tmp_path))).text


def test_a_masked_models_loss_has_a_name_of_its_own(unfinished):
    with open(unfinished / "operative_config.gin", "a") as file:
        file.write("train.objective = @masked()\n")
    assert "held-out nats/hidden token" in parse(write_report(str(unfinished))).text


def test_a_probe_of_another_run_is_shown_but_not_at_the_top(finished, tmp_path):
    other = tmp_path / "other" / "linear_probe"
    other.parent.mkdir()
    (finished / "linear_probe").rename(other)
    text = parse(write_report(str(finished), [str(other.parent)])).text
    assert str(other) in text and "linear probe, layer 1" not in text


DAMAGE = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "not JSON": lambda text: "{'a': 1}",
    "another structure": lambda text: "[1, 2]",
    "no fields": lambda text: "{}",
    "all null": lambda text: re.sub(r": [^{\[][^,}\]]*", ": null", text),
    "texts for numbers": lambda text: re.sub(r": [\d.]+", ': "1"', text),
    "objects for texts": lambda text: re.sub(r': "[^"]*"', ': {"a": 1}', text),
    "lists for objects": lambda text: text.replace("{", "[").replace("}", "]"),
    "empty lists": lambda text: re.sub(r"\[[^\[\]]*\]", "[]", text),
    "huge integers": lambda text: re.sub(r": [\d.]+", ": " + "9" * 400, text),
    "very huge integers": lambda text: re.sub(r": [\d.]+", ": " + "9" * 5000, text),
    "infinite": lambda text: re.sub(r": [\d.]+", ": 1e999", text),
    "NaN": lambda text: re.sub(r": [\d.]+", ": NaN", text),
    "large": lambda text: re.sub(r": [\d.]+", ": 1e30", text),
    "negative": lambda text: re.sub(r": (?=\d)", ": -", text),
    "deep": lambda text: '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "half a character": lambda text: re.sub(r': "[^"]*"', r': "\\ud800"', text),
    "control characters": lambda text: re.sub(r': "[^"]*"', r': "\\u0000\\u001b[31m"', text),
    "many layers": lambda text: text.replace('"layer": 1', '"layer": 9007199254740992'),
}
FILES = (
    "result.json",
    "metrics.jsonl",
    "environment.jsonl",
    "operative_config.gin",
    "export/100/assets/metadata.json",
    "linear_probe/linear_probe.json",
    "low_data/low_data.json",
    "finetune/result.json",
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_page_is_written_whatever_the_files_contain(finished, damage):
    for name in FILES:
        write(finished / name, DAMAGE[damage]((finished / name).read_text()))
    text = parse(write_report(str(finished))).text
    assert "What was run" in text
    if damage not in ("large", "negative", "control characters", "many layers"):
        for tool in ("linear_probe", "low_data"):
            assert text.count(f"{tool}/{tool}.json cannot be read") == 1


def test_files_that_cannot_be_read_are_named_and_the_rest_is_shown(finished):
    write(finished / "low_data" / "low_data.json", {"measured_on": "valid"})
    write(finished / "samples" / "step_100.png", "<html>")
    with open(finished / "metrics.jsonl", "a") as file:
        file.write('{"step": 150, "spl')
    os.mkfifo(finished / "finetune" / "confusion.png")
    text = parse(write_report(str(finished))).text
    assert "low_data/low_data.json cannot be read (Object missing required field" in text
    assert "samples/step_100.png cannot be read (not a complete PNG file)" in text
    assert "metrics.jsonl: 1 damaged line is left out" in text
    assert "layer 1 (best)" in text


def test_a_folder_that_is_not_a_run_ends_with_code_2_and_one_line(tmp_path):
    line = programs.refused_at_once("tools.report", f"--workdir={tmp_path}")
    assert "not the folder of a run" in line
    with pytest.raises(InputError, match="does not exist"):
        write_report(str(tmp_path), [str(tmp_path / "none")])


def test_the_report_needs_no_tensorflow(unfinished):
    code = (
        "import sys; from igpt_tf.report.page import write_report; "
        f"write_report({str(unfinished)!r}); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_curves_without_points_are_left_out():
    assert line_chart("t", [Curve("a", [])], "x", "y") == []
    [block] = line_chart("t", [Curve("a", []), Curve("b", [(0, 1)])], "x", "y")
    assert [curve.name for curve in block["chart"].curves] == ["b"]


@pytest.mark.parametrize("narrow", [False, True])
def test_labels_of_close_levels_do_not_overlap(narrow):
    levels = [("uniform", 6.238), ("unigram", 5.961), ("per pixel", 5.925)]
    chart = LineChart("t", [Curve("a", [(0, 6), (9, 3.5)])], "x", "y", levels)
    svg = chart.svg(narrow)
    heights = {}
    for name, _ in levels:
        label = re.search(rf"<text[^>]*translate\([\d.]+ ([\d.]+)\)[^>]*>{name}", svg) or re.search(
            rf'<text[^>]* y="([\d.]+)"[^>]*>{name}', svg
        )
        heights[name] = float(label.group(1))
    assert (
        heights["uniform"] + 11 < heights["unigram"]
        and heights["unigram"] + 11 < heights["per pixel"]
    )


def test_colors_of_a_chart_follow_the_theme():
    svg = LineChart("t", [Curve("a", [(0, 6), (9, 3.5)], [1, 2])], "x", "y").svg()
    assert "var(--c0)" in svg and not re.search(r"#[0-9a-f]{6}\b", svg)
