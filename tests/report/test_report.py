"""Claims about the report of a run: one file, escaped, honest about what is missing."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from igpt_tf.errors import InputError
from igpt_tf.image_grid import write_png
from igpt_tf.report import write_page
from igpt_tf.report.charts import Series, line_chart, nice_ticks

VOID = {"img", "meta"}
HOSTILE = '<script>alert("1 & 2")</script>'


class Checker(HTMLParser):
    """Checks that elements are closed in order; collects attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text, self.tags = [], [], "", set()

    def handle_starttag(self, name, attributes):
        self.tags.add(name)
        self.attributes += attributes
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.tags.add(name)
        self.attributes += attributes

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text += data


def read(path):
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
    config = "train.num_steps = 900\ntrain.source = @digits()\ntrain.batch_size = 64\n"
    write(run / "operative_config.gin", config)
    train = [
        {"step": s, "split": "train", "nats_per_token": 3 - s / 100, "images_per_second": 50.0}
        for s in (50, 100)
    ]
    valid = {"step": 100, "split": "valid", "nats_per_token": 2.25}
    probe = {"step": 100, "split": "valid", "probe_accuracy": 0.5, "probe_layer": 1}
    write(run / "metrics.jsonl", lines(*train, valid, probe) + '{"step": 150, "spl')
    return run


@pytest.fixture
def finished(unfinished):
    """The same with everything that a run and the tools leave."""
    run, data = unfinished, {"name": "digits", "arguments": {}}
    nats, baselines = {"valid": 2.25}, {"uniform": 2.833, "unigram": 2.5, "per_position": 2.4}
    done = {"step": 100, "nats_per_token": nats, "baselines": baselines, "parameters": 1234}
    write(run / "result.json", done)
    start = {"started": "2026-01-01", "command": HOSTILE, "versions": {"keras": "3"}}
    hardware = {"cpu": "Abacus", "cores": 2, "memory_gb": 24.0, "accelerators": []}
    write(run / "environment.jsonl", lines({**start, "hardware": hardware}))
    model = {"image_size": [8, 8], "vocabulary_size": 17, "num_layers": 1, "hidden_dim": 8}
    model |= {"num_heads": 2, "causal": True}
    metadata = {"model": model, "data": data, "class_names": [HOSTILE, "b"], "step": 100}
    metadata["objective"] = {"name": "autoregressive"}
    write(run / "export" / "100" / "assets" / "metadata.json", metadata)
    write_png(str(run / "samples" / "step_100.png"), np.zeros((9, 9, 3), "uint8"))
    common = {"data": data, "num_images": {"train": 9, "valid": 5}, "num_classes": 2}
    common |= {"measured_on": "valid", "saved_model": "m"}
    layers = [{"layer": i, "valid_accuracy": a, "l2": 0.1} for i, a in enumerate((0.61, 0.72))]
    raw = {**layers[0], "layers": layers[:1]}
    probe = {"solver": "l2", "layers": layers, "best_layer": layers[1], "concatenated": None}
    write(
        run / "linear_probe" / "linear_probe.json", {**common, **probe, "baselines": {"raw": raw}}
    )
    few = [{"labels_per_class": 4, "layer": 1, "valid_accuracy": 0.43, "valid_deviation": 0.021}]
    few = {"num_subsets": 5, "pretrained_network": few, "raw_pixels": few}
    write(run / "low_data" / "low_data.json", {**common, **few})
    tuned = {"generative_weight": 1, "classification_weight": 1, "learning_rate": 0.003}
    tuned |= {"from_scratch": True, "step": 50, "accuracy": {"valid": 0.875}}
    write(run / "finetune" / "result.json", tuned)
    return run


def test_a_finished_run_is_told_whole(finished):
    text = read(write_page(str(finished))).text
    for told in (
        "finished",
        "Abacus",
        "keras 3",
        "per position",
        "layer 1 (best held-out)",
        "43.0 % ± 2.1",
        "fresh",
        "87.5 %",
        "50 images/s",
        "to be filled in",
    ):
        assert told in text, told
    assert re.findall(r"No [a-z -]+ (?:was|were) found", text) == ["No evaluation was found"]


def test_a_model_with_damaged_metadata_has_no_card(finished):
    write(finished / "export" / "100" / "assets" / "metadata.json", {"model": {}, "step": 100})
    assert "No sound model was exported" in read(write_page(str(finished))).text


def test_the_page_asks_nothing_of_the_network_and_runs_no_script(finished):
    page = read(write_page(str(finished)))
    assert not page.tags & {"script", "link", "iframe"}
    asked = [value for name, value in page.attributes if name in ("src", "href")]
    assert asked and all(value.startswith(("data:image/png;base64,", "#")) for value in asked)


def test_what_files_say_never_becomes_markup(finished):
    page = read(write_page(str(finished)))
    assert page.text.count(HOSTILE) == 2


def test_an_unfinished_run_says_in_a_line_what_is_missing(unfinished):
    text = read(write_page(str(unfinished))).text
    assert "unfinished: step 100 of 900" in text
    for line in (
        "The baselines are measured when the run ends; it has not.",
        "Command and hardware are not recorded: no environment.jsonl.",
        "No linear probe was found (python -m tools.linear_probe).",
        "No fine-tuning was found (python -m tools.finetune).",
        "No sound model was exported yet, so there is no card.",
    ):
        assert line in text


def test_a_run_that_has_reported_nothing_still_has_a_page(tmp_path):
    write(tmp_path / "metrics.jsonl", "")
    assert "Nothing was reported yet" in read(write_page(str(tmp_path))).text


def test_damaged_results_are_named_and_the_rest_is_shown(finished):
    write(finished / "low_data" / "low_data.json", {"measured_on": "valid"})
    text = read(write_page(str(finished))).text
    assert "The file in low_data could not be understood." in text
    assert "layer 1 (best held-out)" in text


def test_a_probe_of_another_run_is_shown_but_is_not_this_runs_headline(finished, tmp_path):
    other = tmp_path / "other" / "linear_probe"
    other.parent.mkdir()
    (finished / "linear_probe").rename(other)
    text = read(write_page(str(finished), [str(other.parent)])).text
    assert str(other) in text and "linear probe, layer 1" not in text


def test_a_folder_that_is_no_run_ends_with_code_2_and_one_line(tmp_path):
    command = [sys.executable, "-m", "tools.report", f"--workdir={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "is no run" in ended.stderr
    with pytest.raises(InputError, match="does not exist"):
        write_page(str(tmp_path), [str(tmp_path / "none")])


def test_the_report_needs_no_tensorflow(unfinished):
    code = (
        "import sys; from igpt_tf.report import write_page; "
        f"write_page({str(unfinished)!r}); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("span", [(0, 1), (1.09, 2.83), (-3, 0.2), (5, 5), (0, 0), (1e5, 9e5)])
def test_ticks_enclose_what_they_mark(span):
    ticks = nice_ticks(*span)
    assert ticks[0] <= span[0] and span[1] <= ticks[-1] and 2 <= len(ticks) <= 9


def test_every_point_of_a_chart_lies_on_its_paper():
    curve = Series("a", [(0, -5), (10, 7.3)], [1, 2])
    chart = line_chart("t", [curve], x_label="x", y_label="y", levels=[("high", 30)])
    places = re.findall(r"([\d.-]+),([\d.-]+)", re.search(r'points="([^"]*)"', chart).group(1))
    assert len(places) == 2
    assert all(0 <= float(x) <= 640 and 0 <= float(y) <= 300 for x, y in places)
