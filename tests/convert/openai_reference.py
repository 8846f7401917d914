"""OpenAI's Image GPT in NumPy, on variables of the published names, and TF1 files of them.

Written from the paper's equations and the published einsums, without code of `igpt_tf`.
"""

import numpy as np
import tensorflow as tf


def random_variables(
    *, layers=2, dim=24, heads=3, side=4, vocabulary=7, bert=False, seed=0
) -> dict[str, np.ndarray]:
    """Published name -> float32 array: a non-zero output matrix and gains that are not one."""
    rng = np.random.default_rng(seed)

    def normal(*shape, around=0.0):
        return (around + 0.2 * rng.standard_normal(shape)).astype("float32")

    variables = {
        "wte": normal(vocabulary, dim),
        "wpe": normal(side * side, dim),
        "wtet": normal(vocabulary, dim),
        "ln_f/g": normal(dim, around=1),
    }
    if not bert:
        variables["sos"] = normal(dim)
    for i in range(layers):
        for name in ("ln_1", "ln_2"):
            variables[f"h{i}/{name}/g"] = normal(dim, around=1)
        for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
            variables[f"h{i}/attn/{name}"] = normal(heads, dim // heads, dim)
        variables[f"h{i}/mlp/c_fc/w"] = normal(dim, 4 * dim)
        variables[f"h{i}/mlp/c_proj/w"] = normal(4 * dim, dim)
    return {f"model/{name}": value for name, value in variables.items()}


def write_checkpoint(variables: dict[str, np.ndarray], prefix: str, shards: int = 3) -> None:
    """A TF1 checkpoint of several data files, as `tf.train.Saver(sharded=True)` writes it."""
    v1 = tf.compat.v1
    with tf.Graph().as_default():
        for i, (name, value) in enumerate(variables.items()):
            with tf.device(f"/cpu:{i % shards}"):
                v1.get_variable(name, initializer=value, use_resource=False)
        saver = v1.train.Saver(sharded=True)
        with v1.Session(config=v1.ConfigProto(device_count={"CPU": shards})) as session:
            session.run(v1.global_variables_initializer())
            saver.save(session, prefix)


def forward(variables, tokens, masked=None) -> tuple[np.ndarray, np.ndarray]:
    """Logits float64[B,T,V] and features float64[B,L+1,D] of tokens int[B,T].

    `masked` bool[B,T] is for BERT; without it the model is autoregressive.
    """
    w = {k.removeprefix("model/"): v.astype("float64") for k, v in variables.items()}
    h = w["wte"][tokens]
    if masked is not None:
        h = h * ~masked[..., None]
    if "sos" in w:
        sos = np.broadcast_to(w["sos"], (len(h), 1, h.shape[-1]))
        h = np.concatenate([sos, h[:, :-1]], axis=1)
    h = h + w["wpe"]
    features = []
    for i in range(sum(name.endswith("ln_1/g") for name in w)):
        n = _norm(h, w[f"h{i}/ln_1/g"])
        features.append(n.mean(axis=1))
        h = h + _attention(n, w, f"h{i}/attn", causal="sos" in w)
        inner = _norm(h, w[f"h{i}/ln_2/g"]) @ w[f"h{i}/mlp/c_fc/w"]
        h = h + (inner / (1 + np.exp(-1.702 * inner))) @ w[f"h{i}/mlp/c_proj/w"]
    n = _norm(h, w["ln_f/g"])
    return n @ w["wtet"].T, np.stack([*features, n.mean(axis=1)], axis=1)


def nats(logits, tokens) -> np.ndarray:
    """Cross-entropy of each token, float64[B,T]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_probabilities, tokens[..., None], axis=-1)[..., 0]


def greedy_completion(variables, tokens, num_given: int) -> np.ndarray:
    """Keeps the first tokens of int[B,T] and fills the rest with the likeliest, one by one."""
    tokens = np.array(tokens)
    for i in range(num_given, tokens.shape[1]):
        tokens[:, i] = forward(variables, tokens)[0][:, i].argmax(axis=-1)
    return tokens


def _norm(x, gain):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * gain


def _attention(x, w, scope, *, causal):
    q, k, v = (np.einsum("bsf,hef->bhse", x, w[f"{scope}/{name}_proj"]) for name in "qkv")
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhse,hef->bsf", weights @ v, w[f"{scope}/c_proj"])
