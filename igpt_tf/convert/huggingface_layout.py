"""The layout of Hugging Face's ImageGPT: names, shapes and the settings that give our network.

Its matrices are `[in, out]` and its `c_attn` is queries, keys and values side by side, as ours:
nothing is transposed. `sos` is the last row of `wte`; every matrix has a bias that is zero.

Source: huggingface/transformers `models/imagegpt/modeling_imagegpt.py`,
`ImageGPTForCausalImageModeling`, and `load_tf_weights_in_imagegpt` in its 4.x releases.
"""

from collections.abc import Iterator

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT

MODEL_TYPE = "imagegpt"
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
TOKEN_EMBEDDING = "transformer.wte.weight"
OUTPUT_EMBEDDING = "lm_head.weight"

SIZES = ("n_embd", "n_head", "n_layer", "n_positions", "vocab_size")

# Settings that change the function computed, with the one value that is Image GPT's.
FUNCTION = {
    "activation_function": "quick_gelu",
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
}


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
    """Pairs (name, variable of ours) of the tensors that are one variable each.

    All of `shapes` but the biases, and `wte`, which holds two.
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
    """Whether a tensor of `shapes` is one of those that our network has not."""
    return name.endswith(".bias")


def is_buffer(name: str) -> bool:
    """Whether a tensor is a causal mask that old releases saved with the weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def check_function(settings: dict, path: str) -> None:
    """Stops unless a folder's `config.json` describes the network of the paper.

    Args:
        settings: The file's content.
        path: The file, for the message.

    Raises:
        InputError: Another model type, no sizes, or a setting under which the network differs.
    """
    if settings.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"the folder holds another kind of model than {MODEL_TYPE}. "
            f"Received: model_type={settings.get('model_type')}, path={path}"
        )
    absent = [name for name in SIZES if not isinstance(settings.get(name), int)]
    if absent:
        raise InputError(f"the sizes {', '.join(absent)} are missing. Received: path={path}")
    wanted = FUNCTION | {"n_inner": 4 * settings["n_embd"]}
    # A missing or null setting means the library's default, which is the wanted one.
    given = {name: settings.get(name) for name in wanted if settings.get(name) is not None}
    for name, value in given.items():
        if value != wanted[name]:
            raise InputError(
                f"the network of this folder is not the paper's, which has {name}="
                f"{wanted[name]}. Received: {name}={value}, path={path}"
            )
