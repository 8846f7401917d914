"""Our network and palette -> a Hugging Face ImageGPT folder. Needs no torch."""

import json
import os

import numpy as np
from safetensors.numpy import save_file

from igpt_tf.convert import huggingface_layout as layout
from igpt_tf.errors import InputError
from igpt_tf.files import make_workdir
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette


def write_huggingface(model: ImageGPT, palette: Palette, folder: str) -> None:
    """Writes what `from_pretrained` of ImageGPT's classes and image processor opens.

    Args:
        model: An autoregressive network.
        palette: Its palette.
        folder: Created; must hold no model yet.

    Raises:
        InputError: The network is a masked one, which that library cannot express, or the
            folder holds a model or cannot be created.
    """
    if not model.causal:
        raise InputError(
            "Hugging Face's ImageGPT is autoregressive: it has no place for a masked (BERT) "
            "model. Received: causal=False"
        )
    path = os.path.join(folder, layout.WEIGHTS_FILE)
    if os.path.exists(path):
        raise InputError(f"the folder holds a model already; name another. Received: {path}")
    make_workdir(folder)
    # The library wants to be told which framework's shapes these are.
    save_file(_tensors(model), f"{path}.partial", metadata={"format": "pt"})
    os.replace(f"{path}.partial", path)
    _write_json(os.path.join(folder, layout.CONFIG_FILE), _config(model))
    _write_json(os.path.join(folder, layout.PROCESSOR_FILE), _processor(model, palette))


def _tensors(model: ImageGPT) -> dict[str, np.ndarray]:
    """Every tensor of the layout, float32."""
    tensors = {name: np.asarray(variable) for name, variable in layout.variables(model)}
    rows = [np.asarray(model.token_embedding), np.asarray(model.sos)[None]]
    tensors[layout.TOKEN_EMBEDDING] = np.concatenate(rows)
    shapes = layout.shapes(model.architecture)
    zeros = {n: np.zeros(s, "float32") for n, s in shapes.items() if layout.is_bias(n)}
    return tensors | zeros


def _config(model: ImageGPT) -> dict:
    """`config.json`. The library's own defaults would drop out a tenth of everything."""
    dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    return {
        "architectures": ["ImageGPTForCausalImageModeling"],
        "initializer_range": 0.02,
        "model_type": layout.MODEL_TYPE,
        "n_embd": model.hidden_dim,
        "n_head": model.num_heads,
        "n_inner": None,
        "n_layer": model.num_layers,
        "n_positions": model.sequence_length,
        # With False, releases 4.42 to 5.20 divide by the integer part of sqrt(head_dim).
        "reorder_and_upcast_attn": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": model.vocabulary_size + 1,
        **dropouts,
        **layout.FUNCTION,
    }


def _processor(model: ImageGPT, palette: Palette) -> dict:
    """`preprocessor_config.json`: resize, scale to [-1, 1], nearest colour."""
    height, width = model.image_size
    return {
        "clusters": palette.centroids.tolist(),
        "do_color_quantize": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "ImageGPTImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": height, "width": width},
    }


def _write_json(path: str, content: dict) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
