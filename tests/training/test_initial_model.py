"""Tests of runs that start from the weights of a SavedModel."""

import gc
import json

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf import config
from igpt_tf.data import digits
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.load import SavedModel, load_model
from igpt_tf.training.initial_model import InitialModel, resize_positions
from igpt_tf.training.train import train

GREYS = Palette.grey(17)
SETTINGS = {
    "train.source": "@npz()",
    "train.palette": "@load_palette()",
    "train.augmentation": "[]",
    "train.batch_size": 32,
    "build_model.num_layers": 1,
    "build_model.hidden_dim": 16,
    "build_optimizer.learning_rate": 0.01,
    "build_optimizer.warmup_steps": 2,
    "intervals.log_every": 1,
    "intervals.sample_every": 0,
}
GIN_FILES = [
    "gin/base.gin",
    "gin/models/tiny.gin",
    "gin/objectives/autoregressive.gin",
    "gin/optimization/short.gin",
]


def save_digits(path, classes):
    """A file with the digits of some classes."""
    images, labels = digits().train.arrays()
    chosen = np.isin(labels, classes)
    np.savez(path, images=images[chosen], labels=labels[chosen] - min(classes))


def run(workdir, settings, *, dry_run=False):
    gin.clear_config()
    gc.collect()  # releases the lock of an earlier run
    config.parse(GIN_FILES, [f"{name} = {value}" for name, value in settings.items()])
    train(workdir=str(workdir), dry_run=dry_run)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folder of a run on the digits 0 to 4, beside new.npz with the digits 5 to 9."""
    folder = tmp_path_factory.mktemp("pretrained")
    save_digits(folder / "old.npz", range(5))
    save_digits(folder / "new.npz", range(5, 10))
    GREYS.save(str(folder / "palette.npy"))
    run(folder / "run", settings(folder, "old", num_steps=80))
    return folder


def settings(folder, data, *, num_steps, **more):
    return {
        **SETTINGS,
        "npz.path": repr(str(folder / f"{data}.npz")),
        "load_palette.path": repr(str(folder / "palette.npy")),
        "train.num_steps": num_steps,
        **{name.replace("__", "."): value for name, value in more.items()},
    }


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], line["split"]): line["nats_per_token"] for line in lines}


def test_continued_pretraining_starts_below_fresh_weights_and_stays_below(pretrained, tmp_path):
    export = str(pretrained / "run/export")
    run(tmp_path / "fresh", settings(pretrained, "new", num_steps=6))
    continued = settings(pretrained, "new", num_steps=6, load_palette__path=repr(export))
    run(tmp_path / "continued", continued | {"train.initial_model": repr(export)})
    fresh, adapted = losses(tmp_path / "fresh"), losses(tmp_path / "continued")
    assert fresh[1, "train"] == pytest.approx(np.log(17), rel=1e-4)
    assert adapted[1, "train"] < fresh[1, "train"] - 0.5  # before the first update
    assert adapted[6, "valid"] < fresh[6, "valid"] - 0.3
    for step in range(1, 7):
        assert adapted[step, "train"] < fresh[step, "train"]
    metadata = SavedModel(str(tmp_path / "continued/export")).metadata
    assert metadata["initial_model"]["path"] == export
    assert metadata["initial_model"]["step"] == SavedModel(export).metadata["step"]
    assert metadata["step"] == 6
    text = (tmp_path / "continued/operative_config.gin").read_text()
    assert config.parse_bindings(text)["train.initial_model"] == repr(export)
    assert SavedModel(export).metadata["initial_model"] is None
    # Without the binding it would be another run.
    with pytest.raises(InputError, match="train.initial_model = None where it was"):
        run(tmp_path / "continued", continued)


def test_first_weights_are_exactly_the_stored_ones(pretrained):
    export = str(pretrained / "run/export")
    stored, _, metadata = load_model(export)
    model = ImageGPT(**metadata["model"])
    InitialModel(export).assign_to(model)
    for one, other in zip(model.get_weights(), stored.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


REFUSED = [
    ({"build_model.num_layers": 2}, "set build_model.num_layers=1. Received: .*num_layers=2"),
    ({"build_model.hidden_dim": 32}, "set build_model.hidden_dim=16. "),
    ({"build_model.num_heads": 2}, "set build_model.num_heads=4. "),
    ({"train.objective": "@masked()"}, "set train.objective=@autoregressive()"),
    (
        {"train.palette": "@grey_palette()", "grey_palette.num_levels": 16},
        'load_palette.path=.*run/export". .*palette of 16 colours.* has 17',
    ),
    ({"train.initial_model": "'~/nowhere'"}, "folder does not exist. .*/home/nowhere"),
    ({"train.initial_model": "'.'"}, "holds no SavedModel"),
]


@pytest.mark.parametrize(("binding", "message"), REFUSED)
def test_difference_is_refused_in_one_line_before_anything_is_written(
    pretrained, tmp_path, monkeypatch, binding, message
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    bindings = settings(pretrained, "new", num_steps=4)
    bindings |= {"train.initial_model": repr(str(pretrained / "run/export")), **binding}
    if "grey_palette.num_levels" in binding:
        del bindings["load_palette.path"]
    for dry_run in (True, False):
        with pytest.raises(InputError, match=message.replace("()", r"\(\)")):
            run(tmp_path / "run", bindings, dry_run=dry_run)
    assert not (tmp_path / "run").exists()


def test_fine_tuned_model_is_refused(pretrained, tmp_path):
    export = tmp_path / "1"
    saved = SavedModel(str(pretrained / "run/export"))
    (export / "assets").mkdir(parents=True)
    (export / "saved_model.pb").write_bytes(b"")
    saved.palette.save(str(export / "assets/palette.npy"))
    task = {"name": "classification", "num_classes": 5}
    (export / "assets/metadata.json").write_text(json.dumps({**saved.metadata, "task": task}))
    with pytest.raises(InputError, match="not from a fine-tuned one"):
        InitialModel(str(export))


def test_interpolated_positions_beat_fresh_ones_at_step_0(pretrained, capsys, tmp_path):
    export = str(pretrained / "run/export")
    images, _ = digits().valid.arrays()
    larger = tf.image.resize(images, (12, 16), method="area").numpy().round().astype("uint8")
    tokens = GREYS.encode(larger)
    initial = InitialModel(export)
    model = ImageGPT(**{**initial.saved.metadata["model"], "image_size": (12, 16)})
    fresh = model.position_embedding.numpy()
    initial.assign_to(model)
    interpolated = keras.ops.mean(Autoregressive()(model, tokens))
    model.position_embedding.assign(fresh)
    assert interpolated < keras.ops.mean(Autoregressive()(model, tokens)) - 0.1

    np.savez(tmp_path / "larger.npz", images=larger)
    run(
        tmp_path / "run",
        settings(pretrained, "new", num_steps=4)
        | {"npz.path": repr(str(tmp_path / "larger.npz")), "train.initial_model": repr(export)},
        dry_run=True,
    )
    assert "position embeddings interpolated from 8x8 to 12x16" in capsys.readouterr().out


def test_positions_are_interpolated_along_their_own_axes():
    rows, columns = np.meshgrid(np.arange(6.0), np.arange(9.0), indexing="ij")
    grid = np.stack([rows, columns], axis=-1).reshape(54, 2).astype("float32")
    resized = resize_positions(grid, (6, 9), (12, 27)).reshape(12, 27, 2)
    np.testing.assert_allclose(np.diff(resized[3:-3, :, 0], axis=0), 1 / 2, atol=1e-4)
    np.testing.assert_allclose(np.diff(resized[:, 4:-4, 1], axis=1), 1 / 3, atol=1e-4)
    np.testing.assert_allclose(resized[..., 0], resized[:, :1, 0].repeat(27, axis=1), atol=1e-4)
    np.testing.assert_allclose(resize_positions(grid, (6, 9), (6, 9)), grid, atol=1e-5)
