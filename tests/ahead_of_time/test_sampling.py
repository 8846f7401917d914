"""Tests of the sampling program that is compiled."""

import pytest

from igpt_tf.ahead_of_time.sampling import sampling_hlo
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT, abstract_model


def small_model(**changes):
    sizes = {"vocabulary_size": 16, "num_layers": 1, "hidden_dim": 32, "num_heads": 2}
    return abstract_model(lambda: ImageGPT(image_size=(4, 4), **sizes, **changes))


def test_sampling_is_traced_without_storage_and_weights_are_arguments():
    few, many = (len(sampling_hlo(small_model(), num_images)) for num_images in (2, 512))
    assert few == pytest.approx(many, rel=0.02)


def test_a_masked_model_is_refused():
    with pytest.raises(InputError, match="only complete"):
        sampling_hlo(small_model(causal=False), 2)
