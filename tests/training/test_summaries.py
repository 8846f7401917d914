"""Tests of what a run records, read by TensorBoard's own reader."""

import contextlib
import json
import os
import time

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from igpt_tf.training.summaries import TAGS, Summaries


def write(directory, first_step, losses):
    """One start of a run, which writes {step: loss} in both splits."""
    time.sleep(1.1)  # TensorBoard orders the files of a folder by their second
    paths = str(directory / "summaries"), str(directory / "metrics.jsonl")
    with contextlib.closing(Summaries(*paths, first_step=first_step)) as summaries:
        summaries.text("config", "as always")
        for step, loss in losses.items():
            summaries.scalars(step, "train", loss=loss)
            summaries.scalars(step, "valid", loss=loss)


@contextlib.contextmanager
def opened(directory):
    paths = str(directory / "summaries"), str(directory / "metrics.jsonl")
    with contextlib.closing(Summaries(*paths, first_step=0)) as summaries:
        yield summaries


def events_in(directory, run):
    return EventAccumulator(str(directory / "summaries" / run)).Reload()


def points(events, tag):
    return [(x.step, float(tf.make_ndarray(x.tensor_proto))) for x in events.Tensors(tag)]


def shown(directory, split):
    shown_points = points(events_in(directory, split), "loss/objective")
    return dict(shown_points), len(shown_points)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_repeated_steps_are_shown_once_with_their_last_values(tmp_path, split):
    write(tmp_path, 0, {0: 4.0, 5: 3.0, 10: 2.0, 15: 1.0, 20: 0.5})
    write(tmp_path, 10, {15: 1.5})
    assert shown(tmp_path, split) == ({0: 4.0, 5: 3.0, 10: 2.0, 15: 1.5}, 4)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if line["split"] == split] == [4.0, 3.0, 2.0, 1.5]


def test_closed_summaries_keep_no_file_open(tmp_path):
    def number_open():
        return len(os.listdir("/proc/self/fd"))

    write(tmp_path, 0, {0: 1.0})
    before = number_open()
    write(tmp_path, 0, {0: 1.0})
    assert number_open() == before


def test_every_number_of_a_run_is_in_a_group_and_described(tmp_path):
    values = {name: float(number) for number, name in enumerate(TAGS)}
    with opened(tmp_path) as summaries:
        summaries.scalars(7, "train", **values)
    events = events_in(tmp_path, "train")
    for name, (tag, _) in TAGS.items():
        assert tag.count("/") == 1
        assert points(events, tag) == [(7, values[name])]
        assert len(events.SummaryMetadata(tag).summary_description) > 20
    [line] = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert line == {"step": 7, "split": "train", **values}


def test_a_number_of_a_callback_of_ones_own_is_shown_under_its_name(tmp_path):
    with opened(tmp_path) as summaries:
        summaries.scalars(7, "valid", my_metric=0.5)
    assert points(events_in(tmp_path, "valid"), "my_metric") == [(7, 0.5)]


def test_baselines_are_constant_lines_in_the_chart_of_the_loss(tmp_path):
    for last_step in (10, 20):  # the second start of a lengthened run
        with opened(tmp_path) as summaries:
            summaries.baseline("unigram", 2.0, last_step)
        time.sleep(1.1)
    events = events_in(tmp_path, "valid_baseline_unigram")
    assert points(events, "loss/nats_per_token") == [(0, 2.0), (20, 2.0)]


def test_accuracies_of_the_layers_have_a_chart_each(tmp_path):
    with opened(tmp_path) as summaries:
        summaries.layer_accuracies(5, [0.25, 0.5])
    events = events_in(tmp_path, "valid")
    assert points(events, "probe_layers/layer_00") == [(5, 0.25)]
    assert points(events, "probe_layers/layer_01") == [(5, 0.5)]


def test_hyperparameters_are_read_by_the_hparams_plugin(tmp_path):
    values = {"train.num_steps": 10, "train.precision": "float32", "build_model.remat": False}
    with opened(tmp_path) as summaries:
        summaries.hyperparameters(values)
    content = events_in(tmp_path, "").PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["train.num_steps"].number_value == 10
    assert start.hparams["train.precision"].string_value == "float32"
    assert start.hparams["build_model.remat"].HasField("bool_value")
