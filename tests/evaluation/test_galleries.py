"""Galleries: samples, completions and in-paintings as picture files."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from igpt_tf import image_grid, runtime
from igpt_tf.data import digits
from igpt_tf.data.decoding import load_images
from igpt_tf.errors import InputError
from igpt_tf.evaluation import galleries
from igpt_tf.sampling.decoding import peak_bytes
from igpt_tf.sampling.params import PLAIN_SAMPLING, SamplingParams
from igpt_tf.savedmodel.load import SavedModel
from tests.evaluation.tiny import write_tiny

# iGPT-S.
CONFIG = {"image_size": [32, 32], "num_layers": 24, "hidden_dim": 512, "num_heads": 8}
ONE = peak_bytes(CONFIG, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SavedModel(write_tiny(tmp_path_factory.mktemp("model") / "export" / "0"))


@pytest.fixture(scope="module")
def masked_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("masked") / "export" / "0"
    return SavedModel(write_tiny(path, causal=False, num_layers=1))


def sample(model, num_images, batch_size, seed=3):
    params = SamplingParams(seed=seed)
    return galleries.generate(model.signature("sample"), params, num_images, batch_size, "")


def complete(model, images, num_given, batch_size):
    inputs = {"images": images, "num_given": num_given}
    params = SamplingParams(seed=5)
    return galleries.generate(
        model.signature("complete"), params, len(images), batch_size, "", **inputs
    )


def test_image_of_a_seed_is_the_same_in_any_batch(model):
    whole = sample(model, 5, batch_size=5)
    np.testing.assert_array_equal(sample(model, 5, batch_size=2), whole)
    np.testing.assert_array_equal(sample(model, 1, batch_size=2, seed=7), whole[4:])


def test_images_do_not_depend_on_the_number_of_parallel_operations(model, monkeypatch):
    originals = digits().valid.images[:18]
    one = sample(model, 18, 16), complete(model, originals, 40, 16)
    monkeypatch.setattr(runtime, "num_parallel_ops", lambda: 2)
    np.testing.assert_array_equal(sample(model, 18, 16), one[0])
    np.testing.assert_array_equal(complete(model, originals, 40, 16), one[1])


def test_seeds_wrap_around_whatever_the_batches(model):
    whole = sample(model, 3, batch_size=3, seed=2**31 - 2)
    np.testing.assert_array_equal(sample(model, 3, batch_size=2, seed=2**31 - 2), whole)
    np.testing.assert_array_equal(sample(model, 1, batch_size=1, seed=-(2**31)), whole[2:])


def test_completion_keeps_the_given_rows(model):
    images = digits().valid.images[:3]
    completed = complete(model, images, 24, batch_size=2)
    decoded = model.palette.decode(model.palette.encode(images), (8, 8))
    np.testing.assert_array_equal(completed[:, :3], decoded[:, :3])
    assert (completed[:, 3:] != decoded[:, 3:]).any()


def test_images_are_the_same_when_compiled_with_xla(model):
    compiled, originals = galleries.CompiledSignatures(model), digits().valid.images[:3]
    np.testing.assert_array_equal(sample(compiled, 3, 3), sample(model, 3, 3))
    expected = complete(model, originals, 40, 2)
    np.testing.assert_array_equal(complete(compiled, originals, 40, 2), expected)


def test_single_images_are_named_by_their_seed(model, tmp_path):
    galleries.sample(
        saved_model=model.path,
        workdir=str(tmp_path),
        num_images=3,
        params=SamplingParams(seed=17),
        batch_size=4,
        animate=True,
    )
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["seed_00017.png", "seed_00018.png", "seed_00019.png"]
    single = np.asarray(Image.open(tmp_path / "samples" / "seed_00018.png"))
    np.testing.assert_array_equal(single, sample(model, 1, batch_size=1, seed=18)[0])
    description = json.loads((tmp_path / "samples.json").read_text())
    params = dataclasses.asdict(SamplingParams(seed=17))
    assert description == {"num_images": 3, "saved_model": model.path, **params}
    with Image.open(tmp_path / "samples.gif") as animation:
        assert animation.n_frames > 32  # equal frames are merged


def test_masked_model_inpaints_the_dark_pixels_of_a_mask(masked_model, tmp_path):
    mask = np.full((16, 16, 3), 255, "uint8")
    mask[4:12, 4:12] = 0
    image_grid.write_png(str(tmp_path / "mask.png"), mask)
    [small] = load_images([str(tmp_path / "mask.png")], (8, 8))
    known = image_grid.known_pixels(small, "mask.png")
    assert known.sum() == 48 and not known[2:6, 2:6].any()
    galleries.sample(
        saved_model=masked_model.path,
        workdir=str(tmp_path),
        num_images=2,
        known=str(tmp_path / "mask.png"),
        completions=2,
        num_rounds=3,
    )
    originals = digits().valid.images[:2]
    decoded = masked_model.palette.decode(masked_model.palette.encode(originals), (8, 8))
    for seed in range(4):
        image = np.asarray(Image.open(tmp_path / "completions" / f"seed_0000{seed}.png"))
        np.testing.assert_array_equal(image[known], decoded[seed // 2][known])
        assert (image != decoded[seed // 2]).any()
    description = json.loads((tmp_path / "completions.json").read_text())
    assert description["num_rounds"] == 3 and description["known"].endswith("mask.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "cannot sample whole images"),
        ({"num_given": "0.5", "animate": True}, "raster order"),
        ({"num_given": "0.5", "known": "mask.png"}, "not both"),
        ({"num_given": "0.5", "num_rounds": 3}, "pass --known too"),
    ],
)
def test_masked_model_refuses_what_only_raster_order_can_do(
    masked_model, tmp_path, arguments, message
):
    with pytest.raises(InputError, match=message):
        galleries.sample(saved_model=masked_model.path, workdir=str(tmp_path), **arguments)


def test_masks_are_refused_by_autoregressive_models_and_if_they_hide_nothing(
    model, masked_model, tmp_path
):
    image_grid.write_png(str(tmp_path / "white.png"), np.full((8, 8, 3), 255, "uint8"))
    mask = str(tmp_path / "white.png")
    with pytest.raises(InputError, match="cannot in-paint"):
        galleries.sample(saved_model=model.path, workdir=str(tmp_path), known=mask)
    with pytest.raises(InputError, match="hides nothing"):
        galleries.sample(saved_model=masked_model.path, workdir=str(tmp_path), known=mask)


def test_row_of_completions_starts_with_the_original_and_the_given_pixels():
    originals = np.full((2, 4, 4, 3), 50, "uint8")
    completed = np.full((6, 4, 4, 3), 200, "uint8")
    known = galleries.raster_mask(8, (4, 4))
    picture = galleries.completion_grid(originals, completed, known, "runs/digits")
    tile, gap = 96, 5
    assert picture.shape[1] == 5 * (tile + gap) + gap
    body = picture[-2 * (tile + gap) - gap :]
    left = [gap + column * (tile + gap) for column in range(5)]
    assert [int(body[gap, x, 0]) for x in left] == [50, 50, 200, 200, 200]
    assert [int(body[gap + tile - 1, x, 0]) for x in left] == [50, 160, 200, 200, 200]
    header = picture[: -len(body)]
    assert len(header) > 20 and header.min() < 128  # the title and a caption per column


def test_images_to_complete_come_from_files_and_folders_and_the_rest_is_counted(model, tmp_path):
    for name, value in (("a.png", 10), ("b, c.png", 20)):
        image_grid.write_png(str(tmp_path / name), np.full((16, 12, 3), value, "uint8"))
    (tmp_path / "notes.txt").touch()
    paths = [str(tmp_path / "b, c.png"), str(tmp_path)]
    images, note = galleries.load_originals(model, paths, None, 9)
    assert images[:, 0, 0, 0].tolist() == [20, 10, 20] and note == ""
    images, note = galleries.load_originals(model, paths, None, 2)
    assert len(images) == 2 and "first 2 of 3 images (--num_images=3 for all)" in note
    with pytest.raises(InputError, match="repeat the flag"):
        galleries.load_originals(model, [f"{tmp_path / 'a.png'},{tmp_path}"], None, 9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        galleries.load_originals(model, [str(tmp_path / "empty")], None, 9)


def test_sixteen_images_are_generated_at_a_time_if_the_memory_admits_them():
    assert galleries.sampling_batch_size(CONFIG, None, 100, 1e12) == 16
    assert galleries.sampling_batch_size(CONFIG, None, 5, 1e12) == 5
    assert galleries.sampling_batch_size(CONFIG, None, 100, 5 * ONE) == 4
    assert galleries.sampling_batch_size(CONFIG, None, 100, 1.3 * ONE) == 1


@pytest.mark.parametrize(("requested", "available"), [(8, 5 * ONE), (None, 0.5 * ONE)])
def test_batch_that_does_not_fit_is_refused_with_both_sizes(requested, available):
    message = r"need .* GB of memory and .* GB are available.*Received: batch_size="
    with pytest.raises(InputError, match=message):
        galleries.sampling_batch_size(CONFIG, requested, 100, available)


def test_grid_shows_every_image_whole_and_in_order():
    images = np.arange(5, dtype="uint8")[:, None, None, None] * np.ones((1, 2, 3, 3), "uint8")
    picture = image_grid.grid(images, columns=2, scale=4)
    gap = 1
    assert picture.shape == (3 * (8 + gap) + gap, 2 * (12 + gap) + gap, 3)
    assert picture[gap, gap, 0] == 0 and picture[gap, gap + 12 + gap, 0] == 1
    assert (picture[-gap - 8 : -gap, gap : gap + 12] == 4).all()
    assert (picture[-gap - 8 : -gap, gap + 12 :] == 255).all()


def test_titles_and_captions_are_above_the_grid_and_as_wide():
    images = np.zeros((2, 8, 8, 3), "uint8")
    plain = image_grid.grid(images, columns=2)
    titled = image_grid.grid(
        images, columns=2, title="a title that is wider than the grid of two images",
        captions=["original", "completion"],
    )  # fmt: skip
    np.testing.assert_array_equal(titled[-len(plain) :], plain)
    header = titled[: -len(plain)]
    for half in (header[-15:, :106], header[-15:, 106:]):  # both captions
        assert half.min() < 128
    assert len(header) >= 3 * 20  # two lines of title and one of captions


def test_plain_parameters_are_not_mentioned_in_titles(model, tmp_path):
    for params, expected in ((PLAIN_SAMPLING, ""), (SamplingParams(seed=3, top_p=0.9), "0.9")):
        gallery = galleries._Gallery(model, str(tmp_path), params, None, False, False)
        assert expected in gallery._settings() and bool(gallery._settings()) == bool(expected)
