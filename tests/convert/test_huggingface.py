"""Hugging Face folders: layout, round trips, model card, and which folders are refused."""

import json
import os
import struct

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from igpt_tf.convert.huggingface_export import model_card, write_huggingface
from igpt_tf.convert.huggingface_import import HuggingFaceFolder
from igpt_tf.convert.openai_checkpoint import OpenAICheckpoint
from igpt_tf.errors import InputError
from tests.convert import openai_reference as reference
from tests.convert.random_models import assert_same_weights, random_model, random_palette


@pytest.fixture
def folder(tmp_path):
    """A folder that `write_huggingface` wrote."""
    path = str(tmp_path / "folder")
    write_huggingface(random_model(), random_palette(), path)
    return path


def _weights(folder) -> dict[str, np.ndarray]:
    return load_file(os.path.join(folder, "model.safetensors"))


def _change_weights(folder, **changes) -> None:
    """Replaces tensors by name ("." written as "__"); None removes one."""
    tensors = _weights(folder) | {name.replace("__", "."): v for name, v in changes.items()}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, os.path.join(folder, "model.safetensors"))


def _write_index(folder, weight_map) -> None:
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {}, "weight_map": weight_map}, file)


def _change_json(folder, name, **changes) -> None:
    path = os.path.join(folder, name)
    with open(path) as file:
        content = json.load(file)
    with open(path, "w") as file:
        json.dump(content | changes, file)


def _refusal(folder) -> str:
    """The one-line error with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        opened = HuggingFaceFolder(folder)
        opened.palette()
        opened.load()
    message = str(caught.value)
    assert "Received: " in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 1, "dim": 16, "heads": 1},
        {"layers": 3, "dim": 30, "heads": 5, "vocabulary": 9},
        {"image_size": (3, 5)},
    ],
)
def test_weights_palette_and_sizes_survive_a_round_trip_bit_for_bit(tmp_path, sizes):
    model, palette = random_model(**sizes), random_palette(sizes.get("vocabulary", 7))
    write_huggingface(model, palette, str(tmp_path / "folder"))
    folder = HuggingFaceFolder(str(tmp_path / "folder"))
    returned = folder.load()
    assert returned.architecture == model.architecture
    assert folder.palette().fingerprint == palette.fingerprint
    assert_same_weights(returned, model)


def test_openai_checkpoint_gets_the_tensors_of_the_librarys_own_conversion(tmp_path):
    variables = reference.random_variables()
    reference.write_checkpoint(variables, str(tmp_path / "model.ckpt-7"))
    model = OpenAICheckpoint(str(tmp_path / "model.ckpt-7")).load()
    write_huggingface(model, random_palette(), str(tmp_path / "folder"))
    tensors = _weights(tmp_path / "folder")
    dim = 24
    for i in range(2):
        scope = f"model/h{i}/attn"
        c_attn = np.empty((dim, 3 * dim), "float32")
        for part, name in enumerate("qkv"):
            matrix = variables[f"{scope}/{name}_proj"].reshape(dim, dim)
            c_attn[:, part * dim : (part + 1) * dim] = matrix.T
        c_proj = variables[f"{scope}/c_proj"].reshape(dim, dim)
        np.testing.assert_array_equal(tensors[f"transformer.h.{i}.attn.c_attn.weight"], c_attn)
        np.testing.assert_array_equal(tensors[f"transformer.h.{i}.attn.c_proj.weight"], c_proj)
    np.testing.assert_array_equal(tensors["transformer.wte.weight"][:-1], variables["model/wte"])
    np.testing.assert_array_equal(tensors["transformer.wte.weight"][-1], variables["model/sos"])
    np.testing.assert_array_equal(tensors["lm_head.weight"], variables["model/wtet"])


def test_openai_checkpoint_survives_a_round_trip_through_hugging_face(tmp_path):
    reference.write_checkpoint(reference.random_variables(), str(tmp_path / "model.ckpt-7"))
    model = OpenAICheckpoint(str(tmp_path / "model.ckpt-7")).load()
    write_huggingface(model, random_palette(), str(tmp_path / "folder"))
    assert_same_weights(HuggingFaceFolder(str(tmp_path / "folder")).load(), model)


def test_exported_config_has_no_dropout_and_untied_embeddings(folder):
    with open(os.path.join(folder, "config.json")) as file:
        settings = json.load(file)
    assert [settings[f"{kind}_pdrop"] for kind in ("attn", "embd", "resid")] == [0, 0, 0]
    assert settings["tie_word_embeddings"] is False
    assert settings["vocab_size"] == 8


def test_weights_in_several_files_are_read_through_their_index(folder):
    tensors = _weights(folder)
    os.rename(f"{folder}/model.safetensors", f"{folder}/old")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, os.path.join(folder, file))
    weight_map = {name: file for file, part in parts.items() for name in part}
    _write_index(folder, weight_map)
    assert_same_weights(HuggingFaceFolder(folder).load(), random_model())
    os.remove(f"{folder}/b.safetensors")
    assert f"download it too. Received: {folder}/b.safetensors" in _refusal(folder)


def test_index_of_tensors_that_no_file_holds_is_refused(folder):
    weight_map = dict.fromkeys(_weights(folder), "model.safetensors")
    _write_index(folder, weight_map | {"transformer.h.7.ln_1.weight": "model.safetensors"})
    assert "transformer.h.7.ln_1.weight (model.safetensors)" in _refusal(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"lm_head.weight": 1}])
def test_index_without_files_is_refused(folder, weight_map):
    _write_index(folder, weight_map)
    assert "index of the weights cannot be read" in _refusal(folder)


def test_float16_weights_become_float32(folder):
    halves = {name: value.astype("float16") for name, value in _weights(folder).items()}
    save_file(halves, os.path.join(folder, "model.safetensors"))
    model = HuggingFaceFolder(folder).load()
    np.testing.assert_array_equal(model.sos, halves["transformer.wte.weight"][-1])


def test_causal_masks_saved_by_old_releases_are_ignored(folder):
    masks = {
        "transformer__h__0__attn__bias": np.tri(16, dtype=bool)[None, None],
        "transformer__h__0__attn__masked_bias": np.array(-1e4, "float32"),
    }
    _change_weights(folder, **masks)
    assert_same_weights(HuggingFaceFolder(folder).load(), random_model())


def test_image_size_may_be_the_side_of_a_square(folder):
    _change_json(folder, "preprocessor_config.json", size=4)
    assert HuggingFaceFolder(folder).config["image_size"] == (4, 4)


def test_folder_without_palette_is_read_and_needs_one(folder):
    os.remove(f"{folder}/preprocessor_config.json")
    assert HuggingFaceFolder(folder).config["image_size"] == (4, 4)
    assert "--palette" in _refusal(folder)


def test_masked_model_is_not_exported(tmp_path):
    with pytest.raises(InputError, match="BERT"):
        write_huggingface(random_model(causal=False), random_palette(), str(tmp_path / "folder"))
    assert not os.path.exists(tmp_path / "folder")


def test_folder_that_holds_a_model_is_not_overwritten(folder):
    with pytest.raises(InputError, match="folder holds a model"):
        write_huggingface(random_model(), random_palette(), folder)


def test_folder_of_another_model_type_is_refused(folder):
    _change_json(folder, "config.json", model_type="gpt2")
    assert "model_type=gpt2" in _refusal(folder)


@pytest.mark.parametrize(
    "setting",
    [
        {"activation_function": "gelu"},
        {"layer_norm_epsilon": 1e-6},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"n_inner": 48},
        {"tie_word_embeddings": True},
    ],
)
def test_setting_that_changes_the_network_is_refused(folder, setting):
    _change_json(folder, "config.json", **setting)
    assert f"Received: {next(iter(setting))}=" in _refusal(folder)


def test_folder_without_sizes_is_refused(folder):
    _change_json(folder, "config.json", n_head=None)
    assert "n_head" in _refusal(folder)


def test_bias_that_is_not_zero_is_refused(folder):
    _change_weights(folder, transformer__h__1__mlp__c_fc__bias=np.full(96, 0.1, "float32"))
    assert "transformer.h.1.mlp.c_fc.bias" in _refusal(folder)


def test_model_without_output_matrix_is_refused(folder):
    _change_weights(folder, lm_head__weight=None)
    assert "ImageGPTModel" in _refusal(folder)
    bare = {name.removeprefix("transformer."): value for name, value in _weights(folder).items()}
    save_file(bare, os.path.join(folder, "model.safetensors"))
    assert "ImageGPTModel" in _refusal(folder)


def test_missing_tensor_is_named(folder):
    _change_weights(folder, transformer__h__0__ln_2__weight=None)
    assert "missing: transformer.h.0.ln_2.weight." in _refusal(folder)


def test_tensors_that_do_not_fit_the_settings_are_named(folder):
    _change_json(folder, "config.json", n_layer=1)
    assert "unexpected: transformer.h.1." in _refusal(folder)
    _change_json(folder, "config.json", n_layer=2, vocab_size=9)
    assert "lm_head.weight [7, 24] instead of [8, 24]" in _refusal(folder)


def test_heads_that_do_not_divide_the_width_are_refused(folder):
    _change_json(folder, "config.json", n_head=5)
    assert "num_heads=5" in _refusal(folder)


def test_truncated_safetensors_file_is_refused(folder):
    path = f"{folder}/model.safetensors"
    for size in (os.path.getsize(path) - 8, 100, 0):
        os.truncate(path, size)
        assert "incomplete or damaged" in _refusal(folder)


def test_weights_that_float32_does_not_represent_are_refused(folder):
    wide = _weights(folder)["transformer.ln_f.weight"].astype("float64")
    _change_weights(folder, transformer__ln_f__weight=wide)
    assert "transformer.ln_f.weight of F64" in _refusal(folder)


def test_folder_with_pytorch_weights_only_is_refused_with_the_conversion(folder):
    os.rename(f"{folder}/model.safetensors", f"{folder}/pytorch_model.bin")
    assert "save_pretrained" in _refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_json_that_does_not_parse_is_refused(folder, name):
    with open(os.path.join(folder, name), "w") as file:
        file.write('{"n_head": ')
    assert name in _refusal(folder)


def test_path_that_is_not_a_folder_is_refused(tmp_path):
    assert "config.json" in _refusal(str(tmp_path / "nothing"))


def test_image_size_that_contradicts_the_number_of_positions_is_refused(folder):
    _change_json(folder, "preprocessor_config.json", size={"height": 32, "width": 32})
    assert "n_positions=16" in _refusal(folder)
    _change_json(folder, "preprocessor_config.json", size={"height": None, "width": 4})
    assert "n_positions=16" in _refusal(folder)


def test_clusters_that_are_not_a_palette_are_refused(folder):
    _change_json(folder, "preprocessor_config.json", clusters=[[300, 0, 0]] * 7)
    assert "[-1, 1]" in _refusal(folder)
    _change_json(folder, "preprocessor_config.json", clusters=[[1, 2], [3]])
    assert "array` of length 3" in _refusal(folder)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused(folder, value):
    weights = _weights(folder)["transformer.h.1.mlp.c_fc.weight"].copy()
    weights[0, :2] = value
    _change_weights(folder, transformer__h__1__mlp__c_fc__weight=weights)
    message = _refusal(folder)
    assert "transformer.h.1.mlp.c_fc.weight" in message and "2 of 2,304 values" in message


def test_bfloat16_weights_are_widened_exactly(folder):
    bfloat16 = tf.bfloat16.as_numpy_dtype
    narrow = {name: value.astype(bfloat16) for name, value in _weights(folder).items()}
    save_file(narrow, os.path.join(folder, "model.safetensors"))
    model = HuggingFaceFolder(folder).load()
    expected = narrow["transformer.h.1.mlp.c_fc.weight"].astype("float32")
    np.testing.assert_array_equal(model.blocks[1].mlp.input_kernel, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_embd": "24"},
        {"n_head": 0},
        {"n_layer": 10**9},
        {"n_positions": -16},
        {"vocab_size": True},
        {"n_layer": 10**30},
        {"model_type": ["imagegpt"]},
    ],
)
def test_config_of_wrong_types_or_ranges_is_refused(folder, changes):
    _change_json(folder, "config.json", **changes)
    assert "config.json" in _refusal(folder)


@pytest.mark.parametrize("clusters", [5, ["red"], [[0, 0, None]], {"0": [0, 0, 0]}, "x" * 30])
def test_processor_of_wrong_types_is_refused(folder, clusters):
    _change_json(folder, "preprocessor_config.json", clusters=clusters)
    assert "preprocessor_config.json" in _refusal(folder)


def test_index_that_names_a_file_outside_the_folder_is_refused(folder):
    _write_index(folder, {"lm_head.weight": "../model.safetensors"})
    assert "outside the folder" in _refusal(folder)


def test_git_lfs_pointer_is_named_as_such(folder):
    with open(os.path.join(folder, "model.safetensors"), "w") as file:
        file.write("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in _refusal(folder)


@pytest.mark.parametrize(
    "header",
    [
        {"lm_head.weight": {"dtype": "F32", "shape": [7, 24], "data_offsets": [0, 10**12]}},
        {"lm_head.weight": {"dtype": "F32", "shape": [7, -24], "data_offsets": [0, 4]}},
        {"lm_head.weight": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
        ["lm_head.weight"],
    ],
)
def test_wrong_safetensors_header_is_refused(folder, header):
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    assert "safetensors" in _refusal(folder)


def test_model_card_states_what_was_measured_and_no_path_of_this_machine():
    metadata = {
        "step": 1400,
        "nats_per_token": 1.27654,
        "data": {"name": "npz", "arguments": {"path": "/home/me/data.npz", "heldout": 0.1}},
        "versions": {"igpt_tf": "0.1.0"},
    }
    card = model_card(random_model(), random_palette(), metadata, "digits", "mit")
    for text in ("license: mit", "1,400", "1.2765 nats per token", "npz (heldout 0.1)", "4x4"):
        assert text in card
    assert "/home/me" not in card and card.startswith("---\n")
    unknown = model_card(random_model(), random_palette(), {"step": 0}, "digits")
    assert "not measured" in unknown and "license: unknown" in unknown
