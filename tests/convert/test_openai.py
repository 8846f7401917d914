"""Import of OpenAI checkpoints: what is read, and which checkpoints are refused."""

import glob
import os

import numpy as np
import pytest

from igpt_tf.convert.openai_checkpoint import OpenAICheckpoint
from igpt_tf.errors import InputError
from tests.convert import openai_reference as reference

TOKENS = np.random.default_rng(1).integers(0, 7, (3, 16))
MASKED = np.random.default_rng(2).random((3, 16)) < 0.4


@pytest.fixture
def prefix(tmp_path):
    return str(tmp_path / "model.ckpt-1000")


def _assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def _refusal(prefix) -> str:
    """The one-line error with which a checkpoint is refused."""
    with pytest.raises(InputError) as caught:
        OpenAICheckpoint(prefix).load()
    message = str(caught.value)
    assert "Received: " in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 1, "dim": 16, "heads": 2},
        {"layers": 3, "dim": 24, "heads": 3},
        {"layers": 2, "dim": 20, "heads": 5, "vocabulary": 9},
        {"layers": 2, "dim": 14, "heads": 1},
    ],
)
def test_autoregressive_checkpoint_gives_reference_logits_and_features(prefix, sizes):
    variables = reference.random_variables(**sizes)
    reference.write_checkpoint(variables, prefix)
    model = OpenAICheckpoint(prefix).load()
    logits, features = reference.forward(variables, TOKENS)
    _assert_close(model(TOKENS).numpy(), logits)
    _assert_close(model.features(TOKENS).numpy(), features)


def test_masked_checkpoint_gives_reference_logits_and_features(prefix):
    variables = reference.random_variables(bert=True)
    reference.write_checkpoint(variables, prefix)
    model = OpenAICheckpoint(prefix).load()
    logits, features = reference.forward(variables, TOKENS, MASKED)
    _assert_close(model(TOKENS, masked=MASKED).numpy(), logits)
    _assert_close(model.features(TOKENS, masked=MASKED).numpy(), features)
    assert np.abs(logits - reference.forward(variables, TOKENS)[0]).max() > 0.1


def test_sizes_objective_and_step_are_inferred(prefix):
    variables = reference.random_variables(layers=11, dim=10, heads=5, side=3, bert=True)
    reference.write_checkpoint(variables, prefix)
    checkpoint = OpenAICheckpoint(f"{prefix}.index")
    assert checkpoint.step == 1000
    assert checkpoint.config == {
        "image_size": (3, 3),
        "vocabulary_size": 7,
        "num_layers": 11,
        "hidden_dim": 10,
        "num_heads": 5,
        "causal": False,
    }


def test_checkpoint_of_64_shards_is_read(prefix):
    variables = reference.random_variables(layers=8)
    reference.write_checkpoint(variables, prefix, shards=64)
    assert len(glob.glob(f"{prefix}.data-*-of-00064")) == 64
    model = OpenAICheckpoint(prefix).load()
    _assert_close(model(TOKENS).numpy(), reference.forward(variables, TOKENS)[0])


def test_weights_without_transposition_are_equal_bit_for_bit(prefix):
    variables = reference.random_variables()
    reference.write_checkpoint(variables, prefix)
    model = OpenAICheckpoint(prefix).load()
    pairs = {
        "wte": model.token_embedding,
        "wpe": model.position_embedding,
        "wtet": model.output_embedding,
        "sos": model.sos,
        "h1/ln_2/g": model.blocks[1].mlp_norm.scale,
        "h1/mlp/c_fc/w": model.blocks[1].mlp.input_kernel,
        "h0/mlp/c_proj/w": model.blocks[0].mlp.output_kernel,
        "ln_f/g": model.final_norm.scale,
    }
    for name, variable in pairs.items():
        np.testing.assert_array_equal(variable, variables[f"model/{name}"])


def test_checkpoint_without_the_scope_is_read(prefix):
    variables = reference.random_variables()
    bare = {name.removeprefix("model/"): value for name, value in variables.items()}
    reference.write_checkpoint(bare, prefix)
    model = OpenAICheckpoint(prefix).load()
    _assert_close(model(TOKENS).numpy(), reference.forward(variables, TOKENS)[0])


def test_optimizer_state_and_classification_head_are_ignored_and_named(prefix):
    extra = {
        "model/clf/wclf": np.zeros((10, 24), "float32"),
        "model/wte/Adam": np.zeros((7, 24), "float32"),
        "model/h0/ln_1/g/adam_m": np.zeros(24, "float32"),
        "global_step": np.int64(1000),
    }
    reference.write_checkpoint(reference.random_variables() | extra, prefix)
    checkpoint = OpenAICheckpoint(prefix)
    assert checkpoint.ignored == sorted(extra)
    checkpoint.load()


@pytest.mark.parametrize(
    "name", ["model/wtet", "model/h1/attn/v_proj", "model/h0/mlp/c_fc/w", "model/ln_f/g"]
)
def test_missing_variable_is_named(prefix, name):
    variables = reference.random_variables()
    del variables[name]
    reference.write_checkpoint(variables, prefix)
    assert f"missing: {name.removeprefix('model/')}." in _refusal(prefix)


def test_all_missing_and_unexpected_variables_are_named(prefix):
    variables = reference.random_variables()
    variables["model/h0/attn/bias"] = variables.pop("model/h0/ln_1/g")
    variables["model/extra"] = variables.pop("model/h1/ln_1/g")
    reference.write_checkpoint(variables, prefix)
    message = _refusal(prefix)
    assert "missing: h0/ln_1/g, h1/ln_1/g;" in message
    assert "unexpected: extra, h0/attn/bias." in message


def test_variable_of_another_shape_is_named_with_both_shapes(prefix):
    variables = reference.random_variables()
    variables["model/h0/mlp/c_fc/w"] = np.zeros((24, 48), "float32")
    reference.write_checkpoint(variables, prefix)
    assert "h0/mlp/c_fc/w [24, 48] instead of [24, 96]" in _refusal(prefix)


def test_missing_shard_is_named(prefix):
    reference.write_checkpoint(reference.random_variables(), prefix)
    shard = f"{prefix}.data-00001-of-00003"
    os.remove(shard)
    assert shard in _refusal(prefix)


def test_truncated_shard_is_refused(prefix):
    reference.write_checkpoint(reference.random_variables(), prefix)
    shard = f"{prefix}.data-00002-of-00003"
    os.truncate(shard, os.path.getsize(shard) // 2)
    assert "incomplete or damaged" in _refusal(prefix)


def test_flipped_bit_in_a_shard_is_refused(prefix):
    reference.write_checkpoint(reference.random_variables(), prefix)
    with open(f"{prefix}.data-00000-of-00003", "r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    assert "incomplete or damaged" in _refusal(prefix)


def test_damaged_index_is_refused(prefix):
    reference.write_checkpoint(reference.random_variables(), prefix)
    os.truncate(f"{prefix}.index", 100)
    assert "incomplete or damaged" in _refusal(prefix)


def test_path_without_checkpoint_is_refused(prefix):
    assert f"{prefix}.index" in _refusal(prefix)


def test_checkpoint_of_another_network_is_refused(prefix):
    reference.write_checkpoint({"dense/kernel": np.zeros((2, 2), "float32")}, prefix)
    assert "not an Image GPT checkpoint" in _refusal(prefix)


def test_positions_that_are_not_a_square_are_refused(prefix):
    variables = reference.random_variables()
    variables["model/wpe"] = variables["model/wpe"][:12]
    reference.write_checkpoint(variables, prefix)
    assert "sequence_length=12" in _refusal(prefix)


def test_weights_of_another_type_than_float32_are_refused(prefix):
    variables = reference.random_variables()
    variables["model/wpe"] = variables["model/wpe"].astype("float64")
    reference.write_checkpoint(variables, prefix)
    assert "model/wpe of float64" in _refusal(prefix)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["model/wte", "model/h1/attn/k_proj"])
def test_weights_that_are_not_finite_are_refused(prefix, name, value):
    variables = reference.random_variables()
    variables[name].flat[3] = value
    reference.write_checkpoint(variables, prefix)
    message = _refusal(prefix)
    assert name.removeprefix("model/") in message and "1 of " in message


@pytest.mark.parametrize("name", ["lr[0.1]", "what?", "a*", "back\\slash"])
def test_checkpoint_in_a_folder_that_tensorflow_takes_for_a_pattern_is_read(tmp_path, name):
    reference.write_checkpoint(reference.random_variables(), str(tmp_path / "model.ckpt-1"))
    (tmp_path / name).mkdir()
    for path in tmp_path.glob("model.ckpt-1.*"):
        path.rename(tmp_path / name / path.name)
    model = OpenAICheckpoint(str(tmp_path / name / "model.ckpt-1")).load()
    expected = reference.forward(reference.random_variables(), TOKENS)[0]
    _assert_close(model(TOKENS).numpy(), expected)
