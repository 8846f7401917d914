"""Claims about the report of a run in training."""

import contextlib
import json
import types

import pytest
import tensorflow as tf

from igpt_tf.training.actions import Report
from igpt_tf.training.summaries import Summaries

SPEEDS = {"images_per_second", "tokens_per_second", "data_wait"}


@pytest.fixture
def lines(tmp_path):
    """The lines of a report after each of three calls, one step each."""
    trainer = types.SimpleNamespace(
        steps_per_execution=1, batch_size=4, model=types.SimpleNamespace(image_size=(2, 3))
    )
    path = tmp_path / "metrics.jsonl"
    summaries = Summaries(str(tmp_path / "summaries"), str(path), first_step=0)
    shape = {"first_step": 0, "num_steps": 3, "title": "test", "measure": "nats_per_token"}
    report = Report(summaries, trainer, **shape)
    with contextlib.closing(summaries), contextlib.closing(report):
        for step in (1, 2, 3):
            report.add(tf.constant(1.0 / step), waited=0.0)
            report(step)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_has_the_loss_and_the_memory(lines):
    assert [line["nats_per_token"] for line in lines] == pytest.approx([1, 1 / 2, 1 / 3])
    assert all(line["peak_memory_gb"] > 0 for line in lines)


def test_the_call_that_compiles_is_not_timed_so_that_no_speed_is_told_of_it(lines):
    assert not SPEEDS & lines[0].keys()
    assert all(line.keys() >= SPEEDS for line in lines[1:])
    assert all(line["images_per_second"] > 0 for line in lines[1:])
    assert lines[1]["tokens_per_second"] == pytest.approx(6 * lines[1]["images_per_second"], 1e-4)
