"""Figures show names of folders and classes whatever characters these have."""

import warnings

import numpy as np
import pytest

from igpt_tf.evaluation import plots


@pytest.mark.parametrize("name", ["犬", "$x_{$", "a$b$c", "caf\udce9", "été"])
def test_any_name_of_a_class_is_shown_without_a_warning(tmp_path, name):
    path = tmp_path / "confusion.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.confusion(str(path), np.eye(2, dtype=int), [name, "b"], f"runs/{name}")
        plots.surprise_map(str(path), np.zeros((2, 3)), f"runs/{name}")
    assert path.stat().st_size > 1000


def test_characters_that_the_font_lacks_are_escaped_so_that_names_differ():
    assert plots.in_font("犬 été") == r"\u72ac été"
    assert plots.in_font("$5") == r"\$5"  # shown as $5
