"""Figures show names of folders and classes whatever characters these have."""

import warnings

import numpy as np
import pytest
from PIL import Image

from igpt_tf import image_grid
from igpt_tf.evaluation import plots


@pytest.mark.parametrize("name", ["犬", "$x_{$", "a$b$c", "caf\udce9", "été"])
def test_any_name_of_a_class_is_shown_without_a_warning(tmp_path, name):
    path = tmp_path / "confusion.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.confusion(str(path), np.eye(2, dtype=int), [name, "b"], f"runs/{name}")
        plots.surprise_map(str(path), np.zeros((2, 3)), f"runs/{name}")
    assert path.stat().st_size > 1000


def test_titles_of_figures_are_not_cut_off(tmp_path):
    path = tmp_path / "confusion.png"
    plots.confusion(str(path), np.eye(3, dtype=int), ["chat noir"] * 3, "a title")
    dark = np.asarray(Image.open(path).convert("L")) < 128
    assert not dark[:, :3].any() and not dark[-3:].any() and not dark[:3].any()


def test_characters_that_the_font_lacks_are_escaped_so_that_names_differ():
    assert image_grid.in_font("犬 été $5") == r"\u72ac été $5"
    assert plots._plain("$5") == r"\$5"  # shown as $5
    images = np.zeros((4, 8, 8, 3), "uint8")
    grids = [image_grid.grid(images, title=title) for title in ("ö", "é", "犬", r"\u72ac")]
    assert not np.array_equal(grids[0], grids[1])
    np.testing.assert_array_equal(grids[2], grids[3])
