"""The table of signatures: the README shows it, programs read it without TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pytest

from igpt_tf.savedmodel import spec
from igpt_tf.savedmodel.signatures import SignatureFunctions

METADATA = {
    "model": {
        "image_size": [4, 6],
        "vocabulary_size": 12,
        "num_layers": 2,
        "hidden_dim": 24,
        "num_heads": 3,
        "causal": True,
    },
    "completion": "raster order",
    "task": None,
}
MASKED = METADATA | {"completion": "in-painting"}
CLASSIFIER = METADATA | {"task": {"name": "classification", "num_classes": 5}}


def test_the_readme_shows_the_table():
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    with open(os.path.join(root, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    assert spec.markdown_table() in readme, (
        "Replace the table of the README's section 'The SavedModel' by the output of: "
        "python -c 'from igpt_tf.savedmodel import spec; print(spec.markdown_table())'"
    )


@pytest.mark.parametrize(
    ("metadata", "own", "default"),
    [
        (METADATA, {"sample"}, "features"),
        (MASKED, {"inpaint"}, "features"),
        (CLASSIFIER, {"sample", "classify", "classify_bytes"}, "classify"),
    ],
)
def test_the_metadata_decides_which_signatures_a_model_has(metadata, own, default):
    found = spec.available_signatures(metadata)
    assert found.keys() & {"sample", "inpaint", "classify", "classify_bytes"} == own
    assert found.keys() > {"encode", "decode", "features", "features_bytes", "score", "complete"}
    assert spec.default_signature(metadata) == default
    assert found["serving_default"].outputs == found[default].outputs


def test_each_signature_has_a_function_of_its_name():
    for name in spec.SIGNATURES:
        assert callable(getattr(SignatureFunctions, name))


@pytest.mark.parametrize("metadata", [METADATA, MASKED, CLASSIFIER])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_example_requests_have_the_promised_types_and_shapes(metadata, batch_size):
    sizes = spec.sizes_of(metadata)
    for signature in spec.available_signatures(metadata).values():
        request = spec.example_request(signature, sizes, batch_size)
        assert request.keys() == signature.inputs.keys()
        for name, tensor in signature.with_sizes({"B": batch_size}).inputs.items():
            array = np.asarray(request[name])
            dtype = "string" if array.dtype == object else array.dtype.name
            assert tensor.accepts(dtype, array.shape), (signature.name, name)


def test_optional_inputs_default_to_plain_sampling():
    optional = {
        name: spec.default_value(name)
        for name, tensor in spec.SIGNATURES["sample"].inputs.items()
        if tensor.optional
    }
    assert optional == {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


def test_a_spec_accepts_its_type_and_any_size_for_a_letter():
    images = spec.TensorSpec("uint8", ("B", 4, "W", 3))
    assert images.accepts("uint8", (7, 4, 9, 3)) and images.accepts("uint8", (None, 4, 9, 3))
    assert not images.accepts("int32", (7, 4, 9, 3))
    assert not images.accepts("uint8", (7, 5, 9, 3))
    assert not images.accepts("uint8", (7, 4, 9)) and not images.accepts("uint8", None)
    assert str(images.with_sizes({"W": 9})) == "uint8[B,4,9,3]"
    assert str(spec.TensorSpec("uint8", None)) == "uint8 of any rank"


def test_the_table_and_the_metadata_do_not_import_tensorflow():
    program = (
        "import sys; from igpt_tf.savedmodel import metadata, spec; "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
