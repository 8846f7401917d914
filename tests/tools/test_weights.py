"""The tools that import and export weights: one command, outputs equal to those of the reference.

The reference is `tests/convert/openai_reference.py`, in NumPy.
"""

import json
import os

import numpy as np
import pytest

from igpt_tf.savedmodel.load import SavedModel, load_model
from tests import programs
from tests.convert import openai_reference as reference
from tests.convert.random_models import assert_same_weights, random_palette

PARAMS = {"seed": 0, "temperature": 1.0, "top_k": 1, "top_p": 1.0}
PALETTE = random_palette()
TOKENS = np.random.default_rng(1).integers(0, 7, (3, 16))
IMAGES = PALETTE.decode(TOKENS, (4, 4))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of both kinds of checkpoint and the palette, as they are published."""
    folder = tmp_path_factory.mktemp("published")
    for kind in ("ar", "bert"):
        os.mkdir(folder / kind)
        variables = reference.random_variables(bert=kind == "bert")
        reference.write_checkpoint(variables, str(folder / kind / "model.ckpt-1000"))
    PALETTE.save(str(folder / "kmeans_centers.npy"))
    return folder


@pytest.fixture(scope="module")
def causal(published):
    """The SavedModel of the autoregressive checkpoint."""
    return _imported(published, "ar")


@pytest.fixture(scope="module")
def masked(published):
    """The SavedModel of the BERT checkpoint."""
    return _imported(published, "bert")


@pytest.fixture(scope="module")
def huggingface(published, causal):
    """A Hugging Face folder of the same model."""
    folder = published / "huggingface"
    arguments = (f"--saved_model={causal.path}", f"--workdir={folder}", "--license=mit")
    assert "hf upload USER/huggingface" in _done("export_huggingface", *arguments)
    return folder


def _done(tool, *arguments) -> str:
    return programs.done(f"tools.{tool}", *arguments)


def _refused(tool, *arguments) -> str:
    return programs.refused_at_once(f"tools.{tool}", *arguments)


def _openai(folder, kind, workdir) -> list[str]:
    return [
        f"--checkpoint={folder / kind / 'model.ckpt-1000'}",
        f"--palette={folder / 'kmeans_centers.npy'}",
        f"--workdir={workdir}",
    ]


def _imported(published, kind) -> SavedModel:
    workdir = published / f"imported_{kind}"
    _done("import_openai", *_openai(published, kind, workdir))
    return SavedModel(str(workdir / "export"))


def _assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_imported_autoregressive_checkpoint_computes_what_the_reference_does(causal):
    variables = reference.random_variables()
    logits, features = reference.forward(variables, TOKENS)
    nats = reference.nats(logits, TOKENS)
    score = causal.signature("score")(images=IMAGES)
    _assert_close(score["surprise"].reshape(nats.shape), nats)
    _assert_close(score["nats_per_token"], nats.mean(axis=1))
    _assert_close(causal.signature("features")(images=IMAGES)["features"], features)
    completed = causal.signature("complete")(images=IMAGES, num_given=5, **PARAMS)["tokens"]
    np.testing.assert_array_equal(completed, reference.greedy_completion(variables, TOKENS, 5))
    assert (completed != TOKENS).any()


def test_imported_masked_checkpoint_computes_what_the_reference_does(masked):
    variables = reference.random_variables(bert=True)
    nothing = np.zeros(TOKENS.shape, bool)
    _, features = reference.forward(variables, TOKENS, nothing)
    _assert_close(masked.signature("features")(images=IMAGES)["features"], features)
    folds = np.random.default_rng(0).permutation(16) % 8
    nats = np.empty(TOKENS.shape)
    for fold in range(8):
        hidden = nothing | (folds == fold)
        logits = reference.forward(variables, TOKENS, hidden)[0]
        nats[hidden] = reference.nats(logits, TOKENS)[hidden]
    _assert_close(masked.signature("score")(images=IMAGES)["surprise"].reshape(nats.shape), nats)


def test_imported_masked_model_inpaints_the_most_likely_tokens_of_the_reference(masked):
    variables = reference.random_variables(bert=True)
    hidden = np.random.default_rng(2).random(TOKENS.shape) < 0.4
    most_likely = reference.forward(variables, TOKENS, hidden)[0].argmax(axis=-1)
    inpainted = masked.signature("inpaint")(
        images=IMAGES, known=~hidden.reshape(-1, 4, 4), num_rounds=1, **PARAMS
    )["tokens"]
    np.testing.assert_array_equal(inpainted, np.where(hidden, most_likely, TOKENS))
    # With one pixel open, the rounds of `complete` come to one.
    hidden = np.arange(16) == np.full((3, 1), 15)
    most_likely = reference.forward(variables, TOKENS, hidden)[0].argmax(axis=-1)
    completed = masked.signature("complete")(images=IMAGES, num_given=15, **PARAMS)["tokens"]
    np.testing.assert_array_equal(completed, np.where(hidden, most_likely, TOKENS))


def test_metadata_and_signatures_depend_on_the_kind_of_checkpoint(causal, masked):
    assert "sample" in causal.signature_names and "inpaint" not in causal.signature_names
    assert "sample" not in masked.signature_names and "inpaint" in masked.signature_names
    assert causal.metadata["objective"] == {"name": "autoregressive"}
    assert masked.metadata["objective"] == {"name": "masked", "probability": 0.15}
    assert masked.metadata["completion"] == "in-painting"
    assert causal.metadata["step"] == masked.metadata["step"] == 1000
    assert causal.palette.fingerprint == PALETTE.fingerprint


def test_file_of_tokens_gets_the_nats_of_the_reference(published, causal):
    np.save(published / "imagenet_teX.npy", TOKENS)
    _done(
        "evaluate",
        f"--saved_model={causal.path}",
        f"--tokens={published / 'imagenet_teX.npy'}",
        f"--workdir={published / 'evaluated'}",
    )
    report = json.loads((published / "evaluated" / "evaluate.json").read_text())
    nats = reference.nats(reference.forward(reference.random_variables(), TOKENS)[0], TOKENS)
    assert report["nats_per_token"] == pytest.approx(nats.mean(), rel=1e-6)


def test_model_survives_a_round_trip_through_hugging_face(published, causal, huggingface):
    workdir = published / "back"
    _done("import_huggingface", f"--huggingface={huggingface}", f"--workdir={workdir}")
    ours, palette, _ = load_model(causal.path)
    back, same_palette, _ = load_model(str(workdir / "export"))
    assert_same_weights(back, ours)
    assert same_palette.fingerprint == palette.fingerprint
    card = (huggingface / "README.md").read_text()
    assert "license: mit" in card and palette.fingerprint in card and "1,000" in card


def test_import_does_not_overwrite_another(published, causal):
    line = _refused("import_openai", *_openai(published, "ar", published / "imported_ar"))
    assert "an export exists there" in line


def test_missing_shard_is_named(published, tmp_path):
    reference.write_checkpoint(reference.random_variables(), str(tmp_path / "model.ckpt-1"))
    shard = tmp_path / "model.ckpt-1.data-00001-of-00003"
    os.remove(shard)
    line = _refused(
        "import_openai",
        f"--checkpoint={tmp_path / 'model.ckpt-1'}",
        f"--palette={published / 'kmeans_centers.npy'}",
        f"--workdir={tmp_path / 'out'}",
    )
    assert str(shard) in line
    assert not os.path.exists(tmp_path / "out")


def test_palette_of_another_size_is_refused(published, huggingface, tmp_path):
    random_palette(9).save(str(tmp_path / "nine.npy"))
    ours = [f"--palette={tmp_path / 'nine.npy'}", f"--workdir={tmp_path / 'out'}"]
    checkpoint = published / "ar" / "model.ckpt-1000"
    for tool, source in (
        ("import_openai", f"--checkpoint={checkpoint}"),
        ("import_huggingface", f"--huggingface={huggingface}"),
    ):
        assert "9 colours and the model 7 tokens" in _refused(tool, source, *ours)
    assert not os.path.exists(tmp_path / "out")


def test_folder_of_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    workdir = f"--workdir={tmp_path / 'out'}"
    line = _refused("import_huggingface", f"--huggingface={tmp_path}", workdir)
    assert "model_type=gpt2" in line


def test_masked_model_cannot_be_exported_to_hugging_face(masked, tmp_path):
    workdir = f"--workdir={tmp_path / 'out'}"
    assert "BERT" in _refused("export_huggingface", f"--saved_model={masked.path}", workdir)
