"""Layout of Hugging Face's ImageGPT: names and shapes of tensors, schemas of its JSON files.

Matrices are `[in, out]` and `c_attn` concatenates queries, keys and values, both as in `ImageGPT`:
nothing is transposed. `sos` is the last row of `wte`; every matrix has a bias, which is zero.

Source: huggingface/transformers `models/imagegpt/modeling_imagegpt.py`,
`ImageGPTForCausalImageModeling`, and `load_tf_weights_in_imagegpt` in its 4.x releases.
"""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT

MODEL_TYPE = "imagegpt"
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
TOKEN_EMBEDDING = "transformer.wte.weight"
OUTPUT_EMBEDDING = "lm_head.weight"

# Settings that change the function computed, with the value that Image GPT has.
FUNCTION = {
    "activation_function": "quick_gelu",
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
}

_Size = Annotated[int, msgspec.Meta(ge=1, le=2**24)]
_Depth = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class Config(msgspec.Struct):
    """`config.json`. A missing or null setting means the library's default, Image GPT's value."""

    model_type: str | None = None
    n_embd: _Size | None = None
    n_head: _Size | None = None
    n_layer: _Depth | None = None
    n_positions: _Size | None = None
    vocab_size: _Size | None = None
    n_inner: Any = None
    activation_function: Any = None
    add_cross_attention: Any = None
    layer_norm_epsilon: Any = None
    scale_attn_by_inverse_layer_idx: Any = None
    scale_attn_weights: Any = None
    tie_word_embeddings: Any = None


class Processor(msgspec.Struct):
    """`preprocessor_config.json`; older releases write `size` as the side of a square."""

    clusters: list[tuple[float, float, float]] | None = None
    size: Any = None


class Index(msgspec.Struct):
    """`model.safetensors.index.json`: the file of each tensor, of weights in several files."""

    weight_map: Annotated[dict[str, str], msgspec.Meta(min_length=1)]


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of an `ImageGPTForCausalImageModeling`.

    Args:
        config: The arguments of `ImageGPT`.
    """
    dim, vocabulary = config["hidden_dim"], config["vocabulary_size"]
    height, width = config["image_size"]
    found = {
        TOKEN_EMBEDDING: (vocabulary + 1, dim),
        "transformer.wpe.weight": (height * width, dim),
        OUTPUT_EMBEDDING: (vocabulary, dim),
        "transformer.ln_f.weight": (dim,),
    }
    for i in range(config["num_layers"]):
        found |= {f"transformer.h.{i}.{name}": shape for name, shape in _block_shapes(dim)}
    return found


def _block_shapes(dim: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    matrices = {
        "attn.c_attn": (dim, 3 * dim),
        "attn.c_proj": (dim, dim),
        "mlp.c_fc": (dim, 4 * dim),
        "mlp.c_proj": (4 * dim, dim),
    }
    yield from (("ln_1.weight", (dim,)), ("ln_2.weight", (dim,)))
    for name, shape in matrices.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[1:]


def variables(model: ImageGPT) -> Iterator[tuple[str, object]]:
    """Yields (name, variable of `model`) for the tensors that are one variable each.

    These are all of `shapes` except for biases and for `wte`, which holds two variables.
    """
    yield "transformer.wpe.weight", model.position_embedding
    yield OUTPUT_EMBEDDING, model.output_embedding
    for i, block in enumerate(model.blocks):
        scope = f"transformer.h.{i}"
        yield f"{scope}.ln_1.weight", block.attention_norm.scale
        yield f"{scope}.attn.c_attn.weight", block.attention.qkv_kernel
        yield f"{scope}.attn.c_proj.weight", block.attention.output_kernel
        yield f"{scope}.ln_2.weight", block.mlp_norm.scale
        yield f"{scope}.mlp.c_fc.weight", block.mlp.input_kernel
        yield f"{scope}.mlp.c_proj.weight", block.mlp.output_kernel
    yield "transformer.ln_f.weight", model.final_norm.scale


def is_bias(name: str) -> bool:
    """Whether a tensor of `shapes` is a bias, which `ImageGPT` does not have."""
    return name.endswith(".bias")


def is_buffer(name: str) -> bool:
    """Whether a tensor is a causal mask, which old releases save with the weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def check_config(config: Config, path: str) -> None:
    """Checks that a `config.json` describes the network of the paper.

    Args:
        config: The content of the file.
        path: The file, for the error.

    Raises:
        InputError: The model type is another one, sizes are missing, or a setting makes it another
            network.
    """
    if config.model_type != MODEL_TYPE:
        raise InputError(
            f"the model in the folder is not of type {MODEL_TYPE}. "
            f"Received: model_type={config.model_type}, path={path}"
        )
    sizes = ("n_embd", "n_head", "n_layer", "n_positions", "vocab_size")
    missing = [name for name in sizes if getattr(config, name) is None]
    if missing:
        raise InputError(f"the sizes {', '.join(missing)} are missing. Received: path={path}")
    for name, expected in (FUNCTION | {"n_inner": 4 * config.n_embd}).items():
        value = getattr(config, name)
        if value is not None and value != expected:
            raise InputError(
                f"the network of this folder is not the paper's, which has {name}={expected}. "
                f"Received: {name}={value}, path={path}"
            )
