"""Claims about scores, samples, completions and palettes, from a SavedModel to files."""

import json

import numpy as np
import pytest
from PIL import Image

from igpt_tf import image_grid, runtime
from igpt_tf.data import digits
from igpt_tf.errors import InputError
from igpt_tf.evaluation import evaluation, gallery, painting, palettes
from igpt_tf.palette import Palette
from igpt_tf.sampling.params import SamplingParams, parse_num_given
from igpt_tf.savedmodel.load import SavedModel
from tests.evaluation.tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SavedModel(write_tiny(tmp_path_factory.mktemp("model") / "export" / "0"))


def test_an_untrained_model_is_as_surprised_as_a_uniform_guess_at_every_pixel(model):
    report, surprise = evaluation.evaluate(
        model, source=None, split="valid", tokens=None, batch_size=100
    )
    assert report["num_images"] == 360
    assert report["nats_per_token"] == pytest.approx(np.log(17), abs=1e-5)
    assert report["standard_error"] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(surprise, np.full((8, 8), np.log(17)), atol=1e-5)


def test_tokens_score_as_the_images_they_stand_for(model, tmp_path):
    path = tmp_path / "tokens.npy"
    np.save(path, model.palette.encode(digits().valid.images))
    report, _ = evaluation.evaluate(model, source=None, split="", tokens=str(path), batch_size=64)
    assert report["num_images"] == 360
    tokens = evaluation.load_tokens(str(path), model)
    images = np.concatenate(list(evaluation.token_batches(model, tokens, 64)))
    np.testing.assert_array_equal(model.palette.encode(images), tokens)


@pytest.mark.parametrize("shape", [(-1, 64), (-1, 8, 8)])
@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_a_file_of_tokens_may_have_rows_or_images_and_be_scored_in_part(
    model, tmp_path, shape, dtype
):
    tokens = model.palette.encode(digits().valid.images)
    np.save(tmp_path / "teX.npy", tokens.reshape(shape).astype(dtype))
    path = str(tmp_path / "teX.npy")
    np.testing.assert_array_equal(evaluation.load_tokens(path, model), tokens)
    report, _ = evaluation.evaluate(
        model, source=None, split="", tokens=path, num_images=70, batch_size=32
    )
    assert report["num_images"] == 70 and report["data"] == "teX.npy"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.full((2, 64), 17), "between 0 and 16"),
        (np.zeros((2, 65), "int32"), r"integers \[N, 64\]"),
        (np.zeros((2, 4, 16), "int32"), r"or \[N, 8, 8\]"),
        (np.zeros((2, 64)), r"integers \[N, 64\]"),
    ],
)
def test_tokens_that_do_not_fit_the_model_are_refused(model, tmp_path, tokens, message):
    np.save(tmp_path / "tokens.npy", tokens)
    with pytest.raises(InputError, match=message):
        evaluation.load_tokens(str(tmp_path / "tokens.npy"), model)


def test_tokens_of_a_palette_with_two_equal_colours_are_refused():
    grey = Palette.grey(17).centroids.copy()
    grey[5] = grey[4] + 1e-4
    with pytest.raises(InputError, match="belongs to another token"):
        evaluation._check_round_trip(Palette(grey), np.arange(17))


def test_a_part_the_data_set_lacks_is_refused():
    with pytest.raises(InputError, match="parts train, valid"):
        evaluation.choose_split(digits(), "test")


def test_an_image_of_a_seed_is_the_same_in_any_batch(model):
    whole = painting.sample(model, 5, params=SamplingParams(3), batch_size=5)
    parts = painting.sample(model, 5, params=SamplingParams(3), batch_size=2)
    later = painting.sample(model, 1, params=SamplingParams(7), batch_size=2)
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(whole[4:], later)


def test_cores_that_paint_a_part_each_paint_the_same_images(model, monkeypatch):
    originals = digits().valid.images[:18]

    def painted():
        samples = painting.sample(model, 18, params=SamplingParams(3), batch_size=16)
        return samples, painting.complete(
            model, originals, 40, params=SamplingParams(5), batch_size=16
        )

    together = painted()
    monkeypatch.setattr(runtime, "num_parallel_ops", lambda: 2)
    for one, other in zip(together, painted(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_seeds_go_on_at_the_smallest_after_the_largest_whatever_the_batches(model):
    whole = painting.sample(model, 3, params=SamplingParams(2**31 - 2), batch_size=3)
    parts = painting.sample(model, 3, params=SamplingParams(2**31 - 2), batch_size=2)
    last = painting.sample(model, 1, params=SamplingParams(-(2**31)), batch_size=1)
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(whole[2:], last)
    with pytest.raises(InputError, match="seed must be"):
        painting.sample(model, 1, params=SamplingParams(2**31), batch_size=1)


def test_a_completion_keeps_the_given_rows(model):
    images = digits().valid.images[:3]
    completed = painting.complete(model, images, 24, params=SamplingParams(0), batch_size=2)
    shown = model.palette.decode(model.palette.encode(images), (8, 8))
    np.testing.assert_array_equal(completed[:, :3], shown[:, :3])
    assert (completed[:, 3:] != shown[:, 3:]).any()


def test_compiled_by_xla_the_pictures_are_the_same(model):
    compiled, originals = painting.Compiled(model), digits().valid.images[:3]
    for painter in (model, compiled):
        samples = painting.sample(painter, 3, params=SamplingParams(7), batch_size=3)
        completions = painting.complete(
            painter, originals, 40, params=SamplingParams(5), batch_size=2
        )
        if painter is model:
            wanted = samples, completions
    np.testing.assert_array_equal(samples, wanted[0])
    np.testing.assert_array_equal(completions, wanted[1])


def test_num_given_is_a_share_of_the_image_or_whole_rows():
    assert parse_num_given("0.5", (8, 6)) == 24
    assert parse_num_given("3", (8, 6)) == 18
    assert parse_num_given("1.0", (8, 6)) == 48
    for wrong in ("9", "1.5", "-1", "half", "nan", "1.e400"):
        with pytest.raises(InputError, match="num_given"):
            parse_num_given(wrong, (8, 6))


def test_single_images_are_named_by_the_seed_that_paints_them(model, tmp_path):
    common = {"params": SamplingParams(17), "batch_size": 4, "animate": True}
    gallery.write_samples(model.path, str(tmp_path), num_images=3, **common)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["seed_00017.png", "seed_00018.png", "seed_00019.png"]
    single = np.asarray(Image.open(tmp_path / "samples" / "seed_00018.png"))
    [same] = painting.sample(model, 1, params=SamplingParams(18), batch_size=1)
    np.testing.assert_array_equal(single, same)
    about = json.loads((tmp_path / "samples.json").read_text())
    assert about == {"num_images": 3, "saved_model": model.path, **SamplingParams(17).as_dict()}
    with Image.open(tmp_path / "samples.gif") as animation:
        assert animation.n_frames > 32  # frames that do not differ are merged


def test_a_row_of_completions_begins_with_the_original_and_what_was_given():
    originals = np.full((2, 4, 4, 3), 50, "uint8")
    painted = np.full((6, 4, 4, 3), 200, "uint8")
    picture = gallery.completion_grid(originals, painted, 8)
    tile = 4 * (96 // 4)
    gap = (picture.shape[1] - 5 * tile) // 6
    left = [gap + place * (tile + gap) for place in range(5)]
    assert [int(picture[gap, x, 0]) for x in left] == [50, 50, 200, 200, 200]
    assert [int(picture[gap + tile - 1, x, 0]) for x in left] == [50, 160, 200, 200, 200]


def test_images_to_complete_come_from_files_and_folders(tmp_path):
    for name, value in (("a.png", 10), ("b.png", 20), ("notes.txt", 0)):
        if name.endswith("png"):
            image_grid.write_png(str(tmp_path / name), np.full((16, 12, 3), value, "uint8"))
        else:
            (tmp_path / name).touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    paths = [str(tmp_path / "b.png"), str(tmp_path)]
    images = painting.load_images(paths, (8, 8), 9)
    assert images[:, 0, 0, 0].tolist() == [20, 10, 20]
    with pytest.raises(InputError, match="no images"):
        painting.load_images([str(empty)], (8, 8), 9)
    with pytest.raises(InputError, match="smaller than image_size"):
        painting.load_images(paths, (32, 32), 9)


def test_a_grid_shows_every_image_whole_and_in_order():
    images = np.arange(5, dtype="uint8")[:, None, None, None] * np.ones((1, 2, 3, 3), "uint8")
    picture = image_grid.grid(images, columns=2, scale=4)
    gap = 1
    assert picture.shape == (3 * (8 + gap) + gap, 2 * (12 + gap) + gap, 3)
    assert picture[gap, gap, 0] == 0 and picture[gap, gap + 12 + gap, 0] == 1
    assert (picture[-gap - 8 : -gap, gap : gap + 12] == 4).all()
    assert (picture[-gap - 8 : -gap, gap + 12 :] == 255).all()


def test_a_palette_of_all_colours_shows_images_perfectly():
    images = digits().valid.images
    exact = palettes.measure(Palette.grey(17), images)
    coarse = palettes.measure(Palette.grey(3), images)
    assert exact["used_colours"] == 17 and coarse["used_colours"] == 3
    assert exact["psnr"] > 45 > 25 > coarse["psnr"]
    picture = palettes.before_and_after(Palette.grey(17), images)
    gap = (len(picture) - 2 * 96) // 3
    np.testing.assert_array_equal(picture[gap : gap + 96], picture[2 * gap + 96 : -gap])


def test_a_palette_of_real_photographs_is_good_to_the_eye():
    from sklearn.datasets import load_sample_images

    photographs = [image[:384:6, :576:6] for image in load_sample_images().images]
    images = np.stack(photographs)
    palette = Palette.fit(images, 64)
    report = palettes.measure(palette, images)
    assert report["used_colours"] == 64
    assert report["psnr"] > 26
