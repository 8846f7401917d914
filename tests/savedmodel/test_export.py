"""Claims about the SavedModel: it computes what the live model does, for whoever opens it."""

import concurrent.futures
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from igpt_tf.data.images import fit
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette
from igpt_tf.sampling.params import SamplingParams
from igpt_tf.sampling.sampler import Sampler
from igpt_tf.savedmodel import load, pixels
from igpt_tf.savedmodel.load import load_model
from igpt_tf.savedmodel.write import write_pretrained
from tests import oracle

SIZES = {
    "image_size": (4, 6),
    "vocabulary_size": 12,
    "num_layers": 2,
    "hidden_dim": 24,
    "num_heads": 3,
}
CHOICE = {"seed": 3, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
PRETRAINED = {"complete", "decode", "encode", "features", "features_bytes", "score"}


class Exported:
    """A live model and the SavedModel written from it."""

    def __init__(self, folder, causal):
        self.model = ImageGPT(**SIZES, causal=causal)
        rng = np.random.default_rng(1)
        oracle.assign(self.model, oracle.random_arrays(rng, **SIZES, causal=causal))
        self.palette = Palette(rng.uniform(-1, 1, (12, 3)).astype("float32"))
        self.path = write_pretrained(
            self.model,
            self.palette,
            str(folder / "export" / "70"),
            objective={"name": "autoregressive" if causal else "masked"},
            data={"name": "digits", "arguments": {"heldout": 0.2}},
            class_names=("zero", "one"),
            step=70,
            nats_per_token=1.25,
        )
        self.saved = load.SavedModel(self.path)

    def call(self, name, **inputs):
        return self.saved.signature(name)(**inputs)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return Exported(tmp_path_factory.mktemp("causal"), causal=True)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return Exported(tmp_path_factory.mktemp("masked"), causal=False)


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "masked"])
def exported(request, causal, masked):
    return causal if request.param else masked


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(5).integers(0, 256, (5, 4, 6, 3)).astype("uint8")


def _file(image, kind="PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def test_every_signature_of_its_kind_is_there_and_no_other(causal, masked):
    assert set(causal.saved.signature_names) == PRETRAINED | {"serving_default", "sample"}
    assert set(masked.saved.signature_names) == PRETRAINED | {"serving_default", "inpaint"}
    for exported, completion in ((causal, "raster order"), (masked, "in-painting")):
        assert exported.saved.metadata["signatures"] == exported.saved.signature_names
        assert exported.saved.metadata["completion"] == completion


@pytest.mark.parametrize("batch_size", [1, 5])
def test_features_and_tokens_equal_the_live_model(exported, images, batch_size):
    images = images[:batch_size]
    tokens = exported.palette.encode(images)
    np.testing.assert_array_equal(exported.call("encode", images=images)["tokens"], tokens)
    features = exported.call("features", images=images)["features"]
    np.testing.assert_allclose(features, exported.model.features(tokens), rtol=1e-5, atol=1e-6)
    default = exported.call("serving_default", images=images)["features"]
    np.testing.assert_array_equal(default, features)


def test_decoding_what_was_encoded_changes_nothing_further(exported, images):
    tokens = exported.call("encode", images=images)["tokens"]
    shown = exported.call("decode", tokens=tokens)["images"]
    np.testing.assert_array_equal(shown, exported.palette.decode(tokens, SIZES["image_size"]))
    again = exported.call("decode", **exported.call("encode", images=shown))["images"]
    np.testing.assert_array_equal(again, shown)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_surprise_is_the_cross_entropy_of_each_pixel(causal, images, batch_size):
    tokens = causal.palette.encode(images[:batch_size])
    logits = np.array(causal.model(tokens), "float64")
    chances = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(chances, tokens[..., None], axis=-1)[..., 0]
    score = causal.call("score", images=images[:batch_size])
    np.testing.assert_allclose(score["surprise"].reshape(nats.shape), nats, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(score["nats_per_token"], nats.mean(axis=1), rtol=1e-4)


def test_a_masked_models_score_never_sees_the_pixel_it_predicts(masked, images):
    assert masked.saved.metadata["score"] == "pseudo-likelihood"
    score = masked.call("score", images=images)
    np.testing.assert_allclose(
        score["nats_per_token"], score["surprise"].mean(axis=(1, 2)), rtol=1e-5
    )
    # Other colours at one pixel: its V surprises are those of one distribution.
    tokens = np.repeat(masked.palette.encode(images[:1]), 12, axis=0)
    tokens[:, 7] = np.arange(12)
    shown = masked.palette.decode(tokens, SIZES["image_size"])
    np.testing.assert_array_equal(masked.palette.encode(shown), tokens)
    surprise = masked.call("score", images=shown)["surprise"].reshape(12, -1)[:, 7]
    np.testing.assert_allclose(np.exp(-surprise).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("num_images", [1, 5])
def test_samples_equal_the_live_samplers(causal, num_images):
    for choice in ({}, {"temperature": 0.7, "top_k": 5, "top_p": 0.8}):
        choice = {**CHOICE, **choice}
        served = causal.call("sample", num_images=num_images, **choice)
        live = Sampler(causal.model).sample(num_images, SamplingParams(**choice))
        np.testing.assert_array_equal(served["tokens"], live)
        shown = causal.palette.decode(live, SIZES["image_size"])
        np.testing.assert_array_equal(served["images"], shown)


@pytest.mark.parametrize("num_given", [0, 9, 24])
def test_completions_equal_the_live_samplers_and_keep_what_is_given(exported, images, num_given):
    tokens = exported.palette.encode(images)
    served = exported.call("complete", images=images, num_given=num_given, **CHOICE)["tokens"]
    live = Sampler(exported.model).complete(tokens, num_given, SamplingParams(**CHOICE))
    np.testing.assert_array_equal(served, live)
    np.testing.assert_array_equal(served[:, :num_given], tokens[:, :num_given])


def test_in_paintings_equal_the_live_samplers_and_keep_what_is_known(masked, images):
    known = np.random.default_rng(0).random((5, 4, 6)) < 0.5
    tokens = masked.palette.encode(images)
    served = masked.call("inpaint", images=images, known=known, num_rounds=5, **CHOICE)["tokens"]
    known = known.reshape(5, -1)
    live = Sampler(masked.model).inpaint(tokens, known, SamplingParams(**CHOICE), num_rounds=5)
    np.testing.assert_array_equal(served, live)
    np.testing.assert_array_equal(served[known], tokens[known])


def test_a_request_is_reproducible_and_two_batches_equal_one(causal):
    whole = causal.call("sample", num_images=5, **CHOICE)["tokens"]
    np.testing.assert_array_equal(causal.call("sample", num_images=5, **CHOICE)["tokens"], whole)
    first = causal.call("sample", num_images=2, **CHOICE)["tokens"]
    rest = causal.call("sample", num_images=3, **{**CHOICE, "seed": CHOICE["seed"] + 2})["tokens"]
    np.testing.assert_array_equal(np.concatenate([first, rest]), whole)


def test_requests_at_the_same_time_do_not_disturb_each_other(causal):
    def paint(seed):
        return causal.call("sample", num_images=3, **{**CHOICE, "seed": seed})["tokens"]

    alone = [paint(seed) for seed in range(12)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(paint, range(12)))
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("size", [(20, 44), (33, 17), (4, 6)])
def test_files_of_any_kind_and_size_give_the_features_of_their_pixels(causal, mode, size):
    pattern = np.add.outer(np.arange(size[0]) * 5, np.arange(size[1]) * 2)[..., None] + [0, 9, 40]
    image = Image.fromarray(pattern.astype("uint8")).convert(mode)
    shrunk = fit(np.asarray(image.convert("RGB")), SIZES["image_size"])
    served = causal.call("features_bytes", image_bytes=[_file(image)])["features"]
    expected = causal.call("features", images=shrunk[None])["features"]
    np.testing.assert_allclose(served, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (50, 77), (301, 200)])
def test_the_graph_shrinks_images_as_the_training_data_is(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype("uint8")
    served = pixels.fit(image, SIZES["image_size"]).numpy().astype(int)
    assert np.abs(served - fit(image, SIZES["image_size"])).max() <= 1


def test_small_files_are_enlarged(causal):
    image = Image.fromarray(np.full((2, 2, 3), 77, "uint8"))
    served = causal.call("features_bytes", image_bytes=[_file(image)])["features"]
    flat = np.full((1, 4, 6, 3), 77, "uint8")
    expected = causal.call("features", images=flat)["features"]
    np.testing.assert_allclose(served, expected, rtol=1e-5, atol=1e-6)


def test_jpeg_files_are_read_in_a_batch_with_others(causal, images):
    large = Image.fromarray(images[0]).resize((60, 40))
    files = [
        _file(large, "JPEG"),
        _file(Image.fromarray(images[1])),
        _file(large.convert("L"), "JPEG"),
    ]
    served = causal.call("features_bytes", image_bytes=files)["features"]
    own = causal.call("features", images=images[1:2])["features"][0]
    np.testing.assert_allclose(served[1], own, rtol=1e-5, atol=1e-6)
    assert served.shape == (3, 3, 24)


def _bomb() -> bytes:
    """A small file whose header promises 2^30 pixels."""
    content = bytearray(_file(Image.new("RGB", (8, 8))))
    content[16:24] = (2**15).to_bytes(4, "big") * 2
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "1 to 33554432 bytes"),
        (b"no image", "PNG or JPEG"),
        (_file(Image.new("RGB", (8, 8)), "BMP"), "PNG or JPEG"),
        (_file(Image.new("RGB", (8, 8)))[:20], "cut short"),
        (_file(Image.new("RGB", (8, 8)))[:50], "PNG"),
        (_bomb(), "pixels"),
    ],
)
def test_files_that_are_no_images_are_refused_in_one_line(causal, content, message):
    with pytest.raises(InputError, match=message) as caught:
        causal.call("features_bytes", image_bytes=[content])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("sample", {"num_images": 0}, "num_images must be 1 to 4096. Received: num_images=0"),
        ("sample", {"num_images": 4097}, "num_images must be 1 to 4096"),
        ("sample", {"temperature": 0.0}, "temperature must be finite and positive"),
        ("sample", {"temperature": float("nan")}, "temperature must be finite and positive"),
        ("sample", {"temperature": float("inf")}, "temperature must be finite and positive"),
        ("sample", {"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ("sample", {"top_p": 1.01}, "top_p must be above 0 and at most 1"),
        ("sample", {"top_k": -1}, "top_k must be 0"),
        ("complete", {"num_given": -1}, "num_given must be 0 to 24"),
        ("complete", {"num_given": 25}, "num_given must be 0 to 24"),
        ("complete", {"images": np.zeros((1, 4, 5, 3), "uint8")}, "refused its inputs"),
        ("complete", {"colour": 1}, "signature complete takes"),
    ],
)
def test_absurd_requests_are_refused_in_one_line(causal, images, name, wrong, message):
    own = {"num_images": 1} if name == "sample" else {"images": images, "num_given": 3}
    with pytest.raises(InputError, match=message) as caught:
        causal.call(name, **{**own, **CHOICE, **wrong})
    assert "\n" not in str(caught.value)


def test_tokens_outside_the_palette_are_refused(causal):
    with pytest.raises(InputError, match="tokens must be 0 to 11"):
        causal.call("decode", tokens=np.full((1, 24), 12))


def test_no_function_must_be_compiled_and_none_is_random_or_stateful(exported):
    with open(os.path.join(exported.path, "saved_model.pb"), "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    functions = saved.meta_graphs[0].graph_def.library.function
    assert not any(function.attr["_XlaMustCompile"].b for function in functions)
    operations = {node.op for function in functions for node in function.node_def}
    assert not [op for op in operations if op.startswith("Xla")]
    assert not operations & {"RandomUniform", "RandomStandardNormal", "Multinomial", "PyFunc"}


def test_each_weight_is_stored_once(exported):
    variables = os.path.join(exported.path, "variables", "variables")
    stored = [int(np.prod(shape)) for name, shape in tf.train.list_variables(variables) if shape]
    assert sum(stored) == sum(int(np.prod(w.shape)) for w in exported.model.weights)


def test_metadata_and_palette_tell_where_the_model_comes_from(causal):
    with open(os.path.join(causal.path, "assets", "metadata.json")) as file:
        metadata = json.load(file)
    assert ImageGPT(**metadata["model"]).architecture == causal.model.architecture
    assert metadata["palette"] == causal.palette.fingerprint == causal.saved.palette.fingerprint
    assert metadata["objective"] == {"name": "autoregressive"}
    assert metadata["data"]["name"] == "digits"
    assert metadata["class_names"] == ["zero", "one"]
    assert (metadata["step"], metadata["nats_per_token"]) == (70, 1.25)
    assert set(metadata["versions"]) == {"igpt_tf", "tensorflow", "keras", "python"}


def test_a_live_model_comes_back_with_exactly_its_weights(exported):
    model, palette, metadata = load_model(exported.path)
    assert palette.fingerprint == exported.palette.fingerprint
    assert metadata["step"] == 70
    for ours, theirs in zip(model.weights, exported.model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


ALONE = """
import sys
import tensorflow as tf
saved = tf.saved_model.load(sys.argv[1])
choice = dict(seed=tf.constant(3), temperature=tf.constant(1.0), top_k=tf.constant(0),
              top_p=tf.constant(1.0))
painted = saved.signatures["sample"](num_images=tf.constant(2), **choice)
features = saved.signatures["serving_default"](images=painted["images"])["features"]
assert features.shape == (2, 3, 24), features.shape
assert "igpt_tf" not in sys.modules
print(painted["tokens"].numpy().tolist())
"""


def test_it_opens_with_tensorflow_alone_in_an_empty_folder(causal, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, causal.path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tokens = json.loads(done.stdout.splitlines()[-1])
    assert tokens == causal.call("sample", num_images=2, **CHOICE)["tokens"].tolist()
    assert not os.listdir(tmp_path)
