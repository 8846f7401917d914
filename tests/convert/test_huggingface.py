"""Claims about Hugging Face folders: their layout, round trips, and which are refused."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from igpt_tf.convert.huggingface_export import write_huggingface
from igpt_tf.convert.huggingface_import import HuggingFaceFolder
from igpt_tf.convert.openai import OpenAICheckpoint
from igpt_tf.errors import InputError
from tests.convert import openai_reference as reference
from tests.convert.random_models import assert_same_weights, random_model, random_palette


@pytest.fixture
def folder(tmp_path):
    """A folder of our own making."""
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
    """The one line with which a folder is refused."""
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
def test_our_weights_palette_and_sizes_come_back_bit_for_bit(tmp_path, sizes):
    model, palette = random_model(**sizes), random_palette(sizes.get("vocabulary", 7))
    write_huggingface(model, palette, str(tmp_path / "folder"))
    folder = HuggingFaceFolder(str(tmp_path / "folder"))
    returned = folder.load()
    assert returned.architecture == model.architecture
    assert folder.palette().fingerprint == palette.fingerprint
    assert_same_weights(returned, model)


def test_a_published_checkpoint_gets_the_tensors_of_the_librarys_own_conversion(tmp_path):
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


def test_a_checkpoint_that_went_through_hugging_face_is_still_the_same_model(tmp_path):
    reference.write_checkpoint(reference.random_variables(), str(tmp_path / "model.ckpt-7"))
    model = OpenAICheckpoint(str(tmp_path / "model.ckpt-7")).load()
    write_huggingface(model, random_palette(), str(tmp_path / "folder"))
    assert_same_weights(HuggingFaceFolder(str(tmp_path / "folder")).load(), model)


def test_the_exported_folder_drops_nothing_out_and_ties_nothing(folder):
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
    assert f"fetch it too. Received: {folder}/b.safetensors" in _refusal(folder)


def test_an_index_that_names_tensors_no_file_holds_is_refused_by_their_names(folder):
    weight_map = dict.fromkeys(_weights(folder), "model.safetensors")
    _write_index(folder, weight_map | {"transformer.h.7.ln_1.weight": "model.safetensors"})
    assert "transformer.h.7.ln_1.weight (model.safetensors)" in _refusal(folder)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"lm_head.weight": 1}])
def test_an_index_without_files_is_refused(folder, weight_map):
    _write_index(folder, weight_map)
    assert "names no files" in _refusal(folder)


def test_half_precision_weights_become_float32(folder):
    halves = {name: value.astype("float16") for name, value in _weights(folder).items()}
    save_file(halves, os.path.join(folder, "model.safetensors"))
    model = HuggingFaceFolder(folder).load()
    np.testing.assert_array_equal(model.sos, halves["transformer.wte.weight"][-1])


def test_the_causal_masks_that_old_releases_saved_are_passed_over(folder):
    masks = {
        "transformer__h__0__attn__bias": np.tri(16, dtype=bool)[None, None],
        "transformer__h__0__attn__masked_bias": np.array(-1e4, "float32"),
    }
    _change_weights(folder, **masks)
    assert_same_weights(HuggingFaceFolder(folder).load(), random_model())


def test_the_side_of_a_square_is_enough_as_size(folder):
    _change_json(folder, "preprocessor_config.json", size=4)
    assert HuggingFaceFolder(folder).config["image_size"] == (4, 4)


def test_a_folder_without_palette_is_read_and_asks_for_one(folder):
    os.remove(f"{folder}/preprocessor_config.json")
    assert HuggingFaceFolder(folder).config["image_size"] == (4, 4)
    assert "--palette" in _refusal(folder)


def test_a_masked_model_is_not_written_for_a_library_that_cannot_express_it(tmp_path):
    with pytest.raises(InputError, match="BERT"):
        write_huggingface(random_model(causal=False), random_palette(), str(tmp_path / "folder"))
    assert not os.path.exists(tmp_path / "folder")


def test_a_folder_that_holds_a_model_is_not_written_over(folder):
    with pytest.raises(InputError, match="holds a model already"):
        write_huggingface(random_model(), random_palette(), folder)


def test_a_folder_of_another_model_type_is_refused(folder):
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
def test_a_setting_that_changes_the_network_is_refused(folder, setting):
    _change_json(folder, "config.json", **setting)
    assert f"Received: {next(iter(setting))}=" in _refusal(folder)


def test_a_folder_without_sizes_is_refused(folder):
    _change_json(folder, "config.json", n_head=None)
    assert "n_head" in _refusal(folder)


def test_a_bias_that_is_not_zero_is_refused_because_our_network_has_none(folder):
    _change_weights(folder, transformer__h__1__mlp__c_fc__bias=np.full(96, 0.1, "float32"))
    assert "transformer.h.1.mlp.c_fc.bias" in _refusal(folder)


def test_a_body_without_its_output_matrix_is_refused(folder):
    _change_weights(folder, lm_head__weight=None)
    assert "ImageGPTModel" in _refusal(folder)
    bare = {name.removeprefix("transformer."): value for name, value in _weights(folder).items()}
    save_file(bare, os.path.join(folder, "model.safetensors"))
    assert "ImageGPTModel" in _refusal(folder)


def test_a_missing_tensor_is_named(folder):
    _change_weights(folder, transformer__h__0__ln_2__weight=None)
    assert "missing: transformer.h.0.ln_2.weight." in _refusal(folder)


def test_tensors_that_do_not_fit_the_settings_are_named(folder):
    _change_json(folder, "config.json", n_layer=1)
    assert "left over: transformer.h.1." in _refusal(folder)
    _change_json(folder, "config.json", n_layer=2, vocab_size=9)
    assert "lm_head.weight [7, 24] instead of [8, 24]" in _refusal(folder)


def test_heads_that_do_not_divide_the_width_are_refused(folder):
    _change_json(folder, "config.json", n_head=5)
    assert "num_heads=5" in _refusal(folder)


def test_a_truncated_safetensors_file_is_refused(folder):
    path = f"{folder}/model.safetensors"
    for size in (os.path.getsize(path) - 8, 100, 0):
        os.truncate(path, size)
        assert "not a whole safetensors file" in _refusal(folder)


def test_weights_that_float32_cannot_hold_are_refused(folder):
    wide = _weights(folder)["transformer.ln_f.weight"].astype("float64")
    _change_weights(folder, transformer__ln_f__weight=wide)
    assert "transformer.ln_f.weight of F64" in _refusal(folder)


def test_a_folder_with_pytorch_weights_alone_is_told_how_to_become_readable(folder):
    os.rename(f"{folder}/model.safetensors", f"{folder}/pytorch_model.bin")
    assert "save_pretrained" in _refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_json_that_does_not_parse_is_refused(folder, name):
    with open(os.path.join(folder, name), "w") as file:
        file.write('{"n_head": ')
    assert name in _refusal(folder)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    assert "config.json" in _refusal(str(tmp_path / "nothing"))


def test_an_image_size_that_contradicts_the_context_is_refused(folder):
    _change_json(folder, "preprocessor_config.json", size={"height": 32, "width": 32})
    assert "n_positions=16" in _refusal(folder)
    _change_json(folder, "preprocessor_config.json", size={"height": None, "width": 4})
    assert "n_positions=16" in _refusal(folder)


def test_clusters_that_are_no_palette_are_refused(folder):
    _change_json(folder, "preprocessor_config.json", clusters=[[300, 0, 0]] * 7)
    assert "[-1, 1]" in _refusal(folder)
    _change_json(folder, "preprocessor_config.json", clusters=[[1, 2], [3]])
    assert "no palette" in _refusal(folder)
