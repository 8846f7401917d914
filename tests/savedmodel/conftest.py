"""Models of random weights and the SavedModels written from them, once per session."""

import numpy as np
import pytest

from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.load import SavedModel
from igpt_tf.savedmodel.write import write_pretrained
from tests import oracle
from tests.serving import exported

SIZES = {
    "image_size": (4, 6),
    "vocabulary_size": 12,
    "num_layers": 2,
    "hidden_dim": 24,
    "num_heads": 3,
}


class Exported:
    """A live model and its SavedModel."""

    def __init__(self, path: str, causal: bool):
        self.model = ImageGPT(**SIZES, causal=causal)
        rng = np.random.default_rng(1)
        oracle.assign(self.model, oracle.random_arrays(rng, **SIZES, causal=causal))
        self.palette = Palette(rng.uniform(-1, 1, (12, 3)).astype("float32"))
        self.path = write_pretrained(
            self.model,
            self.palette,
            path,
            objective=exported.OBJECTIVES[causal],
            data={"name": "digits", "arguments": {"heldout": 0.2}, "fingerprint": "12ab"},
            class_names=("zero", "one"),
            step=70,
            nats_per_token=1.25,
        )
        self.saved = SavedModel(self.path)

    def call(self, name, **inputs):
        return self.saved.signature(name)(**inputs)


@pytest.fixture(scope="session")
def autoregressive(tmp_path_factory):
    return Exported(str(tmp_path_factory.mktemp("autoregressive") / "export" / "70"), causal=True)


@pytest.fixture(scope="session")
def masked(tmp_path_factory):
    # TensorFlow takes such a path for a pattern, which this one does not match.
    return Exported(str(tmp_path_factory.mktemp("masked") / "lr[0.1]*" / "a\\b" / "70"), False)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """Path of a fine-tuned masked model of 3 classes."""
    return exported.write_classifier(tmp_path_factory.mktemp("classifier") / "1", causal=False)


@pytest.fixture(scope="session", params=["autoregressive", "masked"])
def pretrained(request):
    return request.getfixturevalue(request.param)
