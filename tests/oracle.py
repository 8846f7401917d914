"""The published equations in NumPy, float64: what every implementation is compared with.

Written from the paper (section 2) and openai/image-gpt `src/model.py`, sharing no code with
`igpt_tf`. Arrays go by the published checkpoint's names and shapes, without the scope `model/`:

    wpe [T,D], wte [V,D], wtet [V,D], sos [D] (autoregressive only), ln_f/g [D], and for layer l
    h{l}/ln_1/g, h{l}/ln_2/g [D], h{l}/attn/{q,k,v,c}_proj [heads, D/heads, D],
    h{l}/mlp/c_fc/w [D,4D], h{l}/mlp/c_proj/w [4D,D].
"""

import numpy as np


def logits(arrays: dict, tokens: np.ndarray, masked: np.ndarray | None = None) -> np.ndarray:
    """Logits float64[B,T,V] of tokens int[B,T]; autoregressive if `sos` is among the arrays."""
    return norm(hidden_states(arrays, tokens, masked)[-1], arrays["ln_f/g"]) @ arrays["wtet"].T


def features(arrays: dict, tokens: np.ndarray, masked: np.ndarray | None = None) -> np.ndarray:
    """Means of the post-norm inputs of every layer and of the final norm, float64[B,L+1,D]."""
    states = hidden_states(arrays, tokens, masked)
    gains = [arrays[f"h{layer}/ln_1/g"] for layer in range(len(states) - 1)] + [arrays["ln_f/g"]]
    means = [norm(h, g).mean(axis=1) for h, g in zip(states, gains, strict=True)]
    return np.stack(means, axis=1)


def hidden_states(arrays, tokens, masked=None) -> list:
    """h_0 .. h_L, each float64[B,T,D]."""
    causal = "sos" in arrays
    embedded = arrays["wte"].astype("float64")[tokens]
    if masked is not None:
        embedded = embedded * (1 - masked[..., None])
    if causal:
        sos = np.broadcast_to(arrays["sos"], (len(tokens), 1, embedded.shape[-1]))
        embedded = np.concatenate([sos, embedded[:, :-1]], axis=1)
    states = [embedded + arrays["wpe"]]
    layer = 0
    while f"h{layer}/ln_1/g" in arrays:
        states.append(block(arrays, f"h{layer}", states[-1], causal))
        layer += 1
    return states


def block(arrays, scope, h, causal):
    """One layer, float64[B,T,D] -> float64[B,T,D]."""
    h = h + attention(arrays, f"{scope}/attn", norm(h, arrays[f"{scope}/ln_1/g"]), causal)
    inner = norm(h, arrays[f"{scope}/ln_2/g"]) @ arrays[f"{scope}/mlp/c_fc/w"]
    return h + (inner / (1 + np.exp(-1.702 * inner))) @ arrays[f"{scope}/mlp/c_proj/w"]


def attention(arrays, scope, x, causal):
    """Multi-head attention, float64[B,T,D] -> float64[B,T,D]."""
    query, key, value = (
        np.einsum("bsf,hef->bhse", x, arrays[f"{scope}/{name}_proj"].astype("float64"))
        for name in "qkv"
    )
    scores = np.einsum("bhse,bhte->bhst", query, key) / np.sqrt(query.shape[-1])
    if causal:
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    heads = np.einsum("bhst,bhte->bhse", weights, value)
    return np.einsum("bhse,hef->bsf", heads, arrays[f"{scope}/c_proj"].astype("float64"))


def norm(x, gain):
    """x / sqrt(mean(x^2) + 1e-5) * g."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * gain


def random_arrays(
    rng: np.random.Generator,
    *,
    image_size: tuple[int, int],
    vocabulary_size: int,
    num_layers: int,
    hidden_dim: int,
    num_heads: int,
    causal: bool,
) -> dict:
    """float32 arrays of a model whose every part matters: random gains, non-zero output matrix."""
    dim, per_head = hidden_dim, (num_heads, hidden_dim // num_heads, hidden_dim)
    length = image_size[0] * image_size[1]
    shapes = {"wpe": (length, dim), "wte": (vocabulary_size, dim), "wtet": (vocabulary_size, dim)}
    shapes |= {"ln_f/g": (dim,)} | ({"sos": (dim,)} if causal else {})
    for scope in (f"h{layer}" for layer in range(num_layers)):
        shapes |= {f"{scope}/ln_1/g": (dim,), f"{scope}/ln_2/g": (dim,)}
        shapes |= {f"{scope}/attn/{name}_proj": per_head for name in "qkvc"}
        shapes |= {f"{scope}/mlp/c_fc/w": (dim, 4 * dim), f"{scope}/mlp/c_proj/w": (4 * dim, dim)}
    scales = {name: 0.5 if len(shape) == 1 else shape[-1] ** -0.5 for name, shape in shapes.items()}
    return {
        name: (rng.normal(0, scales[name], shape) + name.endswith("/g")).astype("float32")
        for name, shape in shapes.items()
    }


def assign(model, arrays: dict) -> None:
    """Puts published-layout arrays into an `ImageGPT` of their sizes."""
    model.position_embedding.assign(arrays["wpe"])
    model.token_embedding.assign(arrays["wte"])
    model.output_embedding.assign(arrays["wtet"])
    model.final_norm.scale.assign(arrays["ln_f/g"])
    if model.causal:
        model.sos.assign(arrays["sos"])
    for layer, block_ in enumerate(model.blocks):
        _assign_block(block_, {k: arrays[f"h{layer}/{k}"] for k in _BLOCK})


_BLOCK = (
    "ln_1/g", "ln_2/g", "attn/q_proj", "attn/k_proj", "attn/v_proj", "attn/c_proj",
    "mlp/c_fc/w", "mlp/c_proj/w",
)  # fmt: skip


def _assign_block(target, arrays):
    dim = len(arrays["ln_1/g"])
    # Published projections are [heads, head_dim, D]: "bsf,hef->bhse" in, "bhse,hef->bsf" out.
    qkv = [arrays[f"attn/{name}_proj"].reshape(dim, dim).T for name in "qkv"]
    target.attention_norm.scale.assign(arrays["ln_1/g"])
    target.mlp_norm.scale.assign(arrays["ln_2/g"])
    target.attention.qkv_kernel.assign(np.concatenate(qkv, axis=1))
    target.attention.output_kernel.assign(arrays["attn/c_proj"].reshape(dim, dim))
    target.mlp.input_kernel.assign(arrays["mlp/c_fc/w"])
    target.mlp.output_kernel.assign(arrays["mlp/c_proj/w"])
