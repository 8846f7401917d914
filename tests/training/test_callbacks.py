"""Tests of the callbacks: progress, profile, online probe."""

import dataclasses
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from igpt_tf.data import ArrayExamples, digits
from igpt_tf.errors import InputError
from igpt_tf.training.callbacks import (
    Baselines,
    Intervals,
    OnlineProbe,
    Profile,
    Progress,
    ridge_accuracy,
)
from igpt_tf.training.utilization import peak_flops
from tests.training.small_runs import losses, run_loop, small_trainer

SPEEDS = {"images_per_second", "tokens_per_second", "data_wait"}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """The lines of `metrics.jsonl` of three steps, logged after each."""
    workdir = tmp_path_factory.mktemp("run")
    run_loop(workdir, [Progress(1)], num_steps=3, poison=False)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_every_line_has_the_loss_and_the_memory(lines):
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["nats_per_token"] == pytest.approx(np.log(5), rel=1e-5)
    assert all(line["peak_memory_gb"] > 0 for line in lines)


def test_every_line_has_the_learning_rate_and_the_gradient_norm(lines):
    assert all(line["learning_rate"] == pytest.approx(0.01) for line in lines)
    assert all(0 < line["gradient_norm"] < 10 for line in lines)
    assert len({line["gradient_norm"] for line in lines}) == 3


def test_utilization_is_the_speed_as_a_fraction_of_the_peak(tmp_path):
    run_loop(tmp_path, [Progress(1, peak_images_per_second=1e6)], num_steps=2, poison=False)
    first, second = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert "model_flops_utilization" not in first
    expected = second["images_per_second"] / 1e6
    assert second["model_flops_utilization"] == pytest.approx(expected, rel=1e-4)


def test_peaks_are_those_of_the_device_and_the_precision():
    assert peak_flops("NVIDIA H100 80GB HBM3", "mixed_bfloat16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "float32") == 378e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", "float32") == 156e12
    assert peak_flops("NVIDIA A10", "float32") is None
    assert peak_flops("", "float32") is None


def test_baselines_are_shown_for_the_whole_run(tmp_path):
    run_loop(tmp_path, [Baselines({"uniform": 1.5})], num_steps=2, poison=False)
    events = EventAccumulator(str(tmp_path / "summaries/valid_baseline_uniform")).Reload()
    assert [x.step for x in events.Tensors("loss/nats_per_token")] == [0, 2]


def test_call_that_compiles_is_not_timed(lines):
    assert not SPEEDS & lines[0].keys()
    assert all(line.keys() >= SPEEDS for line in lines[1:])
    assert all(line["images_per_second"] > 0 for line in lines[1:])
    assert lines[1]["tokens_per_second"] == pytest.approx(9 * lines[1]["images_per_second"], 1e-4)


def traces(folder):
    return list(folder.glob("plugins/profile/*/*.xplane.pb"))


def run_profile(folder, steps, first_step, num_steps, every=1):
    """Calls that take `every` steps each; step n runs an operation of that name."""
    profile = Profile(steps, every=every)
    loop = types.SimpleNamespace(
        step=first_step, workdir=types.SimpleNamespace(file=lambda _: str(folder))
    )
    while loop.step < num_steps and profile.every:
        profile.on_step_begin(loop)
        for number in range(loop.step + 1, loop.step + every + 1):
            with tf.profiler.experimental.Trace(f"step_{number:02}"):
                tf.linalg.matmul(tf.ones((8, 8)), tf.ones((8, 8)))
        loop.step += every
        profile.on_step_end(loop)
    profile.on_train_end(loop)


def recorded(folder, num_steps=12):
    """The steps in the one trace."""
    (trace,) = traces(folder)
    content = trace.read_bytes()
    assert b"MatMul" in content
    return [n for n in range(1, num_steps + 1) if f"step_{n:02}".encode() in content]


@pytest.mark.parametrize("steps", [(1, 1), (1, 2), (3, 5), (12, 12)])
def test_profile_records_the_requested_steps_and_no_others(tmp_path, steps):
    run_profile(tmp_path, steps, 0, 12)
    assert recorded(tmp_path) == list(range(steps[0], steps[1] + 1))


@pytest.mark.parametrize(
    ("steps", "calls"), [((3, 4), (1, 4)), ((5, 8), (5, 8)), ((4, 5), (1, 8)), ((12, 12), (9, 12))]
)
def test_profile_records_calls_of_several_steps_as_a_whole(tmp_path, steps, calls):
    run_profile(tmp_path, steps, 0, 12, every=4)
    assert recorded(tmp_path) == list(range(calls[0], calls[1] + 1))


def test_profile_of_a_run_resumed_among_the_steps_records_the_rest(tmp_path):
    run_profile(tmp_path, (3, 5), 4, 9)
    assert recorded(tmp_path) == [5]


def test_profile_of_a_run_resumed_after_the_steps_records_nothing(tmp_path):
    run_profile(tmp_path, (3, 5), 5, 9)
    run_profile(tmp_path, None, 0, 9)
    assert not traces(tmp_path)


@pytest.mark.parametrize("steps", [(0, 2), (5, 3), (10, 13), (13, 14), (3,), (1, 2, 3)])
def test_profile_steps_outside_the_run_are_refused(steps):
    with pytest.raises(InputError, match="profile_steps"):
        Intervals(profile_steps=steps).check(12, 1)


@pytest.mark.parametrize("steps", [None, (1, 1), (1, 12), (12, 12)])
def test_profile_steps_within_the_run_are_accepted(steps):
    Intervals(log_every=2, profile_steps=steps).check(12, 1)


class RecordedSummaries:
    """Stands in for `Summaries`."""

    def __init__(self):
        self.lines, self.accuracies = [], {}

    def scalars(self, step, split, **values):
        self.lines.append({"step": step, "split": split, **values})

    def layer_accuracies(self, step, accuracies):
        self.accuracies[step] = accuracies


def brightness_source(labels_of):
    """4x4 images whose class is their brightness; `labels_of` maps classes to labels."""
    rng = np.random.default_rng(0)
    parts = []
    for number in (60, 40):
        classes = rng.integers(0, 3, number)
        noise = rng.integers(0, 60, (number, 4, 4, 1))
        images = np.repeat(noise + 90 * classes[:, None, None, None], 3, axis=-1).astype("uint8")
        parts.append(ArrayExamples(images, labels_of(classes)))
    return dataclasses.replace(digits(), train=parts[0], valid=parts[1])


def run_probe(trainer, source, step=0):
    """The lines that a probe writes."""
    probe, summaries = OnlineProbe(1, source, 50), RecordedSummaries()
    loop = types.SimpleNamespace(trainer=trainer, step=step, summaries=summaries)
    probe.on_train_begin(loop)
    probe.on_step_end(loop)
    for line in summaries.lines:
        accuracies = summaries.accuracies[step]
        assert accuracies[line["probe_layer"]] == max(accuracies) == line["probe_accuracy"]
        assert len(accuracies) == trainer.model.num_layers + 1
    return summaries.lines


def test_ridge_regression_separates_linear_classes_and_no_others():
    rng = np.random.default_rng(0)
    features, noise = rng.normal(size=(2, 400, 5))
    classes = (features[:, 0] > 0).astype(int)
    fitted = ridge_accuracy(features[:200], classes[:200], features[200:], classes[200:])
    by_chance = ridge_accuracy(noise[:200], classes[:200], noise[200:], classes[200:])
    assert fitted > 0.95 and 0.3 < by_chance < 0.7


def test_probe_writes_the_best_layer_and_its_held_out_accuracy():
    [line] = run_probe(small_trainer(), brightness_source(lambda classes: classes + 4), step=30)
    assert (line["step"], line["split"]) == (30, "valid")
    assert line["probe_accuracy"] > 0.9 and line["probe_layer"] in (0, 1, 2)


def test_labels_that_training_images_lack_never_count_as_right():
    source = brightness_source(lambda classes: classes)
    unseen = ArrayExamples(source.valid.images, np.full(40, 7))
    [line] = run_probe(small_trainer(), dataclasses.replace(source, valid=unseen))
    assert line["probe_accuracy"] == 0


@pytest.mark.parametrize("labels_of", [lambda classes: None, np.zeros_like])
def test_data_without_labels_or_with_one_class_are_not_probed(labels_of, caplog):
    assert run_probe(small_trainer(), brightness_source(labels_of)) == []
    assert "no online probe" in caplog.text


def test_probing_between_steps_does_not_change_the_training():
    alone, probed = small_trainer(), small_trainer()
    for _ in range(2):
        assert losses(alone) == losses(probed)
        run_probe(probed, brightness_source(lambda classes: classes))
    for one, other in zip(alone.model.get_weights(), probed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
