"""Claims about kernels cut into panels: they change nothing but the time."""

from unittest import mock

import keras
import numpy as np
import pytest

from igpt_tf.model import ImageGPT
from igpt_tf.sampling import Sampler, panels
from igpt_tf.sampling.params import SamplingParams


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = ImageGPT(
        image_size=(6, 3), vocabulary_size=11, num_layers=2, hidden_dim=24, num_heads=3
    )
    model.output_embedding.assign(keras.random.normal(model.output_embedding.shape))
    return model


@pytest.mark.parametrize("num_images", [2, 5])
def test_with_panels_in_the_place_of_kernels_the_images_stay_what_they_are(
    model, monkeypatch, num_images
):
    monkeypatch.setattr(panels, "_COLUMNS", 10)  # of 24, 72 and 96: several panels each
    assert all(panel.shape[0] > 1 for panel in panels.cut(model))
    with mock.patch.object(panels, "cut", wraps=panels.cut) as cut:
        painted = Sampler(model, jit_compile=True).sample(num_images, SamplingParams(seed=5))
        cut.assert_called_once()
        np.testing.assert_array_equal(
            painted, Sampler(model).sample(num_images, SamplingParams(seed=5))
        )
        cut.assert_called_once()
    assert len(np.unique(painted)) > 4


def test_a_product_with_panels_is_that_with_the_kernel(model):
    x = np.random.default_rng(3).normal(size=(4, 1, 24)).astype("float32")
    kernel = model.blocks[1].mlp.input_kernel
    product = panels.Panels(model, panels.cut(model)).matmul(x, kernel)
    np.testing.assert_allclose(product, x @ np.asarray(kernel), rtol=1e-5, atol=1e-6)


def test_one_image_and_many_are_painted_with_whole_kernels():
    assert [n for n in (1, 2, 8, 32, 33, 256) if panels.worthwhile(n)] == [2, 8, 32]
