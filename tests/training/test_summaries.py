"""Tests of what a run records: each step once, however often it was taken."""

import contextlib
import json
import os
import time

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from igpt_tf.training.summaries import Summaries


def write(directory, first_step, losses):
    """One start of a run, which writes {step: loss} in both splits."""
    time.sleep(1.1)  # TensorBoard orders the files of a folder by their second
    paths = str(directory / "summaries"), str(directory / "metrics.jsonl")
    with contextlib.closing(Summaries(*paths, first_step=first_step)) as summaries:
        summaries.text("config", "as always")
        for step, loss in losses.items():
            summaries.scalars(step, "train", loss=loss)
            summaries.scalars(step, "valid", loss=loss)


def shown(directory, split):
    events = EventAccumulator(str(directory / "summaries" / split)).Reload().Tensors("loss")
    return {x.step: float(tf.make_ndarray(x.tensor_proto)) for x in events}, len(events)


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
