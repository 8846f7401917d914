"""Fitting a palette: what is measured and written."""

import json

import numpy as np
import pytest

from igpt_tf.data import digits
from igpt_tf.errors import InputError
from igpt_tf.evaluation import palette_fitting
from igpt_tf.palette import Palette


def test_palette_of_all_colours_is_lossless():
    images = digits().valid.images
    exact = palette_fitting.measure(Palette.grey(17), images)
    coarse = palette_fitting.measure(Palette.grey(3), images)
    assert exact["used_colours"] == 17 and coarse["used_colours"] == 3
    assert exact["psnr"] > 45 > 25 > coarse["psnr"]
    picture = palette_fitting.before_and_after(Palette.grey(17), images)
    gap = (len(picture) - 2 * 96) // 3
    np.testing.assert_array_equal(picture[gap : gap + 96], picture[2 * gap + 96 : -gap])


def test_palette_of_photographs_has_a_high_psnr():
    from sklearn.datasets import load_sample_images

    images = np.stack([image[:384:6, :576:6] for image in load_sample_images().images])
    report = palette_fitting.measure(Palette.fit(images, 64), images)
    assert report["used_colours"] == 64
    assert report["psnr"] > 26


def test_report_counts_the_images_fitted_and_measured(tmp_path):
    report = palette_fitting.fit_palette(
        workdir=str(tmp_path), source=digits(), num_colours=5, num_images=500
    )
    assert report["num_images"] == {"fitted": 500, "measured": 360}
    assert report["used_colours"] == 5 and 20 < report["psnr"] < 30
    assert json.loads((tmp_path / "palette.json").read_text()) == report
    assert len(Palette.load(str(tmp_path / "palette.npy"))) == 5
    text = palette_fitting.format_report(report, "palette.npy")
    assert "images fitted" in text and "500" in text


def test_workdir_among_the_images_is_refused_before_it_is_created(tmp_path):
    workdir = tmp_path / "palette"
    with pytest.raises(InputError, match="inside the folder of images"):
        palette_fitting.fit_palette(workdir=str(workdir), images=str(tmp_path))
    assert not workdir.exists()


def test_either_a_folder_or_a_data_set_is_needed(tmp_path):
    with pytest.raises(InputError, match="either a folder"):
        palette_fitting.fit_palette(workdir=str(tmp_path))
