"""Tests of starting a run again: what may change, what must not, how it is repaired."""

import gc
import json

import gin
import numpy as np
import pytest
from PIL import Image
from tensorflow.python.autograph.pyct import parser

from igpt_tf import config, runtime
from igpt_tf.data import digits
from igpt_tf.errors import InputError
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.load import load_model
from igpt_tf.savedmodel.metadata import find
from igpt_tf.training.rewinds import NonFiniteLoss
from igpt_tf.training.train import train

RUN = "gin/runs/digits_tiny_ar.gin"
OWN_PALETTE = (  # in place of the data set's greys
    "gin/base.gin",
    "gin/models/tiny.gin",
    "gin/objectives/autoregressive.gin",
    "gin/optimization/short.gin",
)
SHORT = (
    "train.num_steps = 4",
    "train.batch_size = 8",
    "intervals.log_every = 2",
    "intervals.evaluate_every = 2",
    "intervals.checkpoint_every = 2",
    "intervals.num_heldout_images = 16",
    "intervals.probe_every = 0",
    "intervals.sample_every = 0",
    "build_optimizer.warmup_steps = 1",
    "build_model.num_layers = 1",
    "build_model.hidden_dim = 8",
)


def run(workdir, *bindings, files=(RUN,), dry_run=False):
    """Calls `train` as the program does."""
    gin.clear_config()
    gc.collect()  # releases the lock of an earlier run
    config.parse(list(files), [*SHORT, *bindings])
    train(workdir=str(workdir), dry_run=dry_run)


def test_run_does_not_continue_with_another_palette(tmp_path):
    path = tmp_path / "palette.npy"
    bindings = (
        "train.source = @digits()",
        "train.palette = @load_palette()",
        f"load_palette.path = {str(path)!r}",
        "build_optimizer.learning_rate = 0.004",
    )
    greys = Palette.grey(17)
    greys.save(path)
    run(tmp_path / "run", *bindings, files=OWN_PALETTE)
    (tmp_path / "run/result.json").unlink()
    Palette(greys.centroids[::-1]).save(path)
    for dry_run in (True, False):
        with pytest.raises(InputError, match="another palette"):
            run(tmp_path / "run", *bindings, files=OWN_PALETTE, dry_run=dry_run)
    kept = Palette.load(str(tmp_path / "run/palette.npy"))
    assert kept.fingerprint == greys.fingerprint


@pytest.mark.parametrize("dry_run", [True, False])
def test_too_wide_augmentation_is_refused_before_anything_is_written(tmp_path, dry_run):
    with pytest.raises(InputError, match="fewer pixels.*pixels=100"):
        run(tmp_path / "run", "shift.max_pixels = 100", dry_run=dry_run)
    assert not (tmp_path / "run").exists()


def test_dry_run_refuses_a_workdir_of_another_configuration_and_changes_nothing(tmp_path):
    (tmp_path / "operative_config.gin").write_text("train.seed = 1\n")
    with pytest.raises(InputError, match="another configuration"):
        run(tmp_path, dry_run=True)
    assert (tmp_path / "operative_config.gin").read_text() == "train.seed = 1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["operative_config.gin"]


def test_dry_run_reads_a_batch(tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.png").write_bytes(b"no picture")
    bindings = (
        "train.source = @image_folder()",
        f"image_folder.directory = {str(tmp_path)!r}",
        "image_folder.image_size = (8, 8)",
        "train.palette = @grey_palette()",
        "grey_palette.num_levels = 17",
        "build_optimizer.learning_rate = 0.004",
    )
    with pytest.raises(InputError, match="[a-f].png"):
        run(tmp_path / "run", *bindings, files=OWN_PALETTE, dry_run=True)


@pytest.mark.parametrize("is_faster", [True, False])
def test_dry_run_says_which_precision_suits_the_processor(tmp_path, capsys, monkeypatch, is_faster):
    monkeypatch.setattr(runtime, "bfloat16_is_faster", lambda: is_faster)
    run(tmp_path / "run", *SHORT, dry_run=True)
    assert ("'mixed_bfloat16' is faster on this processor" in capsys.readouterr().out) == is_faster


def test_damaged_best_weights_are_replaced_as_the_message_states(tmp_path):
    run(tmp_path)
    (tmp_path / "result.json").unlink()
    for path in tmp_path.glob("checkpoints/best/best-*.data*"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match='train.export="last"\''):
        run(tmp_path)
    run(tmp_path, 'train.export="last"')
    assert (tmp_path / "export/4/saved_model.pb").exists()
    assert "train.export = 'last'" in (tmp_path / "operative_config.gin").read_text()


def test_non_finite_loss_is_avoided_in_the_same_workdir_as_the_message_states(tmp_path):
    blown_up = ("build_optimizer.learning_rate = 1e30",)
    with pytest.raises(NonFiniteLoss, match="--gin_param=train.num_rewinds=3"):
        run(tmp_path, *blown_up)
    with pytest.raises(NonFiniteLoss):  # again, but not "another configuration"
        run(tmp_path, *blown_up, "train.num_rewinds=3")
    assert (tmp_path / "rewinds.json").read_text().count("[") == 1 + 3


def test_test_split_is_measured_once_at_the_end_in_a_line_of_its_own(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype="uint8")
    parts = {"train_images": images[:20], "valid_images": images[20:30], "test_images": images[30:]}
    np.savez(tmp_path / "images.npz", **parts)
    bindings = (
        "train.source = @npz()",
        f"npz.path = {str(tmp_path / 'images.npz')!r}",
        "train.palette = @grey_palette()",
        "grey_palette.num_levels = 17",
        "build_optimizer.learning_rate = 0.004",
    )
    for _ in range(2):  # the second time as if it had been killed before its result was written
        run(tmp_path / "run", *bindings, files=OWN_PALETTE)
        result = json.loads((tmp_path / "run/result.json").read_text())
        (tmp_path / "run/result.json").unlink()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == {"train", "valid", "test"}
    [line] = [line for line in lines if line["split"] == "test"]
    assert line["step"] == result["step"]
    assert line["nats_per_token"] == pytest.approx(result["nats_per_token"]["test"], rel=1e-5)


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], line["split"]): line["nats_per_token"] for line in lines}


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_lengthened_run_equals_a_long_one_and_is_exported_anew_and_again(tmp_path, capsys):
    # During the warm-up, and in the step after it, both lengths have the same learning rates. The
    # rate is so high that the last step is not the best.
    same = ("build_optimizer.warmup_steps = 1", "build_optimizer.learning_rate = 3.0")
    last = (*same, "train.export = 'last'")
    longer, longer_last = (*same, "train.num_steps = 8"), (*last, "train.num_steps = 8")
    one, other = tmp_path / "lengthened", tmp_path / "long"
    run(one, *last, "train.num_steps = 2")
    assert result(one)["export"] == "export/2"
    run(one, *longer_last, dry_run=True)
    assert result(one)["export"] == "export/2"
    capsys.readouterr()
    run(one, *longer_last)
    out = capsys.readouterr().out
    assert "from step 2 on, the learning rate follows the schedule of 8 steps, 2.85" in out
    assert "(that of 2 steps: 0)" in out and "resuming from step 2" in out
    run(other, *longer_last)
    assert metrics(one) == metrics(other)
    assert result(one) == result(other)
    assert result(one)["export"] == "export/8"
    weights = [load_model(str(path / "export"))[0].get_weights() for path in (one, other)]
    for lengthened, long in zip(*weights, strict=True):
        np.testing.assert_array_equal(lengthened, long)

    # Another export of the finished run takes no step.
    run(one, *longer)
    best = result(one)["step"]
    assert best < 8 and find(str(one / "export")) == str(one / "export" / str(best))
    run(one, *longer_last)
    assert result(one) == result(other) and find(str(one / "export")) == str(one / "export/8")
    assert metrics(one) == metrics(other)
    with pytest.raises(InputError, match="not shortened"):
        run(one, *last)


def test_the_result_of_a_masked_run_says_what_its_loss_counts(tmp_path, capsys):
    run(tmp_path, "train.objective = @masked()", "masked.probability = 0.15")
    assert result(tmp_path)["loss_name"] == "nats per hidden token"
    assert "nats per hidden token" in capsys.readouterr().out


def save_images(folder, number):
    folder.mkdir(exist_ok=True)
    for index in range(number):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype="uint8")
        Image.fromarray(pixels).save(folder / f"{index:02}.png")


def folder_bindings(path):
    return (
        "train.source = @image_folder()",
        f"image_folder.directory = {str(path)!r}",
        "image_folder.image_size = (8, 8)",
        "image_folder.heldout = 0.25",
        "train.palette = @grey_palette()",
        "grey_palette.num_levels = 17",
        "build_optimizer.learning_rate = 0.004",
    )


def test_run_whose_images_changed_is_refused_and_continues_when_asked(tmp_path):
    save_images(tmp_path / "flat", 24)
    run(tmp_path / "run", *folder_bindings(tmp_path / "flat"), files=OWN_PALETTE)
    (tmp_path / "run/result.json").unlink()
    run(tmp_path / "run", *folder_bindings(f"{tmp_path}/flat/"), files=OWN_PALETTE)
    (tmp_path / "run/result.json").unlink()
    save_images(tmp_path / "flat", 36)
    for dry_run in (True, False):
        with pytest.raises(InputError, match="train: 27 images, 18 when the run began"):
            run(
                tmp_path / "run",
                *folder_bindings(tmp_path / "flat"),
                files=OWN_PALETTE,
                dry_run=dry_run,
            )
    accepted = ("train.allow_changed_data = True",)
    run(tmp_path / "run", *folder_bindings(tmp_path / "flat"), *accepted, files=OWN_PALETTE)
    record = json.loads((tmp_path / "run/data.json").read_text())
    assert record["splits"]["train"]["num_images"] == 27


def test_workdir_with_pattern_characters_trains_exports_and_resumes(tmp_path, capsys):
    workdir = tmp_path / "lr[0.1]*"
    run(workdir)
    assert (workdir / "result.json").exists() and list(workdir.glob("export/*/saved_model.pb"))
    (workdir / "result.json").unlink()
    run(workdir)
    out = capsys.readouterr().out
    assert "resuming from step 4" in out and "held-out" in out and "{" not in out
    [metadata] = (
        json.loads(path.read_text()) for path in workdir.glob("export/*/assets/metadata.json")
    )
    assert metadata["data"]["fingerprint"] == digits().fingerprint()


def test_training_and_evaluation_do_not_use_autograph(tmp_path, monkeypatch):
    # On Python 3.11 parsing can fail at random (CPython gh-106905), which would end a run.
    parsed, parse = [], parser.parse_entity
    monkeypatch.setattr(
        parser, "parse_entity", lambda entity, *args: parsed.append(entity) or parse(entity, *args)
    )
    run(
        tmp_path,
        "intervals.probe_every = 2",
        "intervals.sample_every = 2",
        "train.weights = 'averaged'",
        "build_optimizer.ema_momentum = 0.9",
        "step_options.steps_per_execution = 2",
        "step_options.gradient_accumulation_steps = 2",
        "step_options.clip_norm = 1.0",
    )
    # TensorFlow itself converts two functions while it writes a SavedModel.
    names = {getattr(entity, "__name__", str(entity)) for entity in parsed}
    assert names <= {"signature_wrapper", "internal_grad_fn"}
