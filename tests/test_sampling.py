"""Sampling: the cache changes nothing, images depend on seeds only, given tokens are kept."""

from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.sampling.decoding import (
    Decoder,
    PackedKernels,
    cache_bytes,
    invert_cdf,
    matmul_with_cast_kernels,
    peak_bytes,
    random_uniforms,
    segment_length,
    truncate,
    unique_prefixes,
)
from igpt_tf.sampling.params import SamplingParams
from igpt_tf.sampling.sampler import Sampler, complete, count_branches, sample
from tests import oracle

SIZES = {
    "image_size": (6, 3),
    "vocabulary_size": 11,
    "num_layers": 2,
    "hidden_dim": 24,
    "num_heads": 3,
}
LENGTH = 18


def _model(causal=True, **sizes):
    sizes = {**SIZES, **sizes}
    model = ImageGPT(**sizes, causal=causal)
    arrays = oracle.random_arrays(np.random.default_rng(1), **sizes, causal=causal)
    oracle.assign(model, arrays)
    return model


@pytest.fixture(scope="module")
def model():
    return _model()


@pytest.fixture(scope="module")
def sampler(model):
    return Sampler(model)


@pytest.fixture(scope="module")
def masked_sampler():
    return Sampler(_model(causal=False))


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(2).integers(0, SIZES["vocabulary_size"], (4, LENGTH))


def _uncached(model, tokens, num_given, seed):
    """One forward pass over the whole image per position, without a cache."""
    tokens = np.array(tokens, "int32")
    uniforms = random_uniforms(np.arange(seed, seed + len(tokens), dtype="int32"), tokens.shape[1])
    for position in range(num_given, tokens.shape[1]):
        tokens[:, position] = invert_cdf(model(tokens)[:, position], uniforms[:, position])
    return tokens


def test_cached_sampling_equals_sampling_without_cache(model, sampler):
    sampled = sampler.sample(4, SamplingParams(seed=5))
    np.testing.assert_array_equal(sampled, _uncached(model, np.zeros((4, LENGTH)), 0, 5))
    assert len(np.unique(sampled)) > 4


@pytest.mark.parametrize("num_given", [0, 1, 2, 7, 17, 18])
def test_cached_completion_equals_completion_without_cache(model, sampler, tokens, num_given):
    sampled = sampler.complete(tokens, num_given, SamplingParams(seed=5))
    np.testing.assert_array_equal(sampled, _uncached(model, tokens, num_given, 5))
    np.testing.assert_array_equal(sampled[:, :num_given], tokens[:, :num_given])


@pytest.mark.parametrize(
    "sizes",
    [
        {"image_size": (1, 1)},
        {"image_size": (1, 7)},
        {"image_size": (13, 2)},
        {"image_size": (16, 2), "num_heads": 1},
        {"num_layers": 5, "num_heads": 8},
    ],
)
def test_cached_sampling_equals_sampling_without_cache_at_other_sizes(sizes):
    model = _model(**sizes)
    sampled = Sampler(model).sample(2, SamplingParams(seed=3))
    np.testing.assert_array_equal(sampled, _uncached(model, np.zeros(sampled.shape), 0, 3))


def test_jit_compiled_sampling_gives_the_same_images(model, sampler, tokens):
    jitted = Sampler(model, jit_compile=True)
    np.testing.assert_array_equal(
        jitted.sample(4, SamplingParams(seed=5)), sampler.sample(4, SamplingParams(seed=5))
    )
    np.testing.assert_array_equal(
        jitted.complete(tokens, 8, SamplingParams(seed=5, top_k=4)),
        sampler.complete(tokens, 8, SamplingParams(seed=5, top_k=4)),
    )


def test_eager_sampling_gives_the_same_images(model, sampler):
    np.testing.assert_array_equal(
        sample(model, 2, seed=5), sampler.sample(2, SamplingParams(seed=5))
    )


def test_an_image_depends_on_its_own_seed_and_not_on_its_batch(sampler, tokens):
    whole = sampler.sample(5, SamplingParams(seed=10))
    parts = [sampler.sample(2, SamplingParams(seed=10)), sampler.sample(3, SamplingParams(seed=12))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    whole = sampler.complete(tokens, 5, SamplingParams(seed=10))
    parts = [
        sampler.complete(tokens[:1], 5, SamplingParams(seed=10)),
        sampler.complete(tokens[1:], 5, SamplingParams(seed=11)),
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert np.any(
        sampler.sample(5, SamplingParams(seed=11)) != sampler.sample(5, SamplingParams(seed=10))
    )


def test_sampling_in_branches_gives_the_same_images(model, monkeypatch):
    monkeypatch.setattr(runtime, "num_cores", lambda: 3)
    sizes = (1, 8, 15, 16, 17, 24, 25, 32)
    assert [count_branches(size, 3) for size in sizes] == [1, 1, 1, 2, 1, 3, 1, 2]
    sampler = Sampler(model, jit_compile=True)
    together = sampler.sample(24, SamplingParams(seed=10))
    few = [sampler.sample(4, SamplingParams(seed=10 + start)) for start in range(0, 24, 4)]
    np.testing.assert_array_equal(together, np.concatenate(few))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_new_weights_take_effect_in_the_next_call(tokens, jit_compile):
    model = _model()
    sampler = Sampler(model, jit_compile=jit_compile)
    before = sampler.complete(tokens, 2, SamplingParams(seed=0))
    model.blocks[0].mlp.input_kernel.assign(-model.blocks[0].mlp.input_kernel)
    assert np.any(sampler.complete(tokens, 2, SamplingParams(seed=0)) != before)


def test_top_k_of_one_is_greedy(model, sampler):
    sampled = sampler.sample(2, SamplingParams(seed=0, top_k=1))
    np.testing.assert_array_equal(sampled, np.argmax(model(sampled), axis=-1))


def test_a_tiny_temperature_or_top_p_is_greedy_too(sampler):
    greedy = sampler.sample(2, SamplingParams(seed=0, top_k=1))
    np.testing.assert_array_equal(
        sampler.sample(2, SamplingParams(seed=3, temperature=1e-6)), greedy
    )
    np.testing.assert_array_equal(sampler.sample(2, SamplingParams(seed=3, top_p=1e-6)), greedy)


def test_truncation_that_keeps_everything_changes_nothing(sampler):
    plain = sampler.sample(3, SamplingParams(seed=1))
    everything = sampler.sample(3, SamplingParams(seed=1, top_k=SIZES["vocabulary_size"]))
    np.testing.assert_array_equal(plain, everything)


def test_truncation_keeps_the_best_by_rank_then_the_smallest_set_by_mass():
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3]], "float32"))

    def kept(top_k, top_p):
        return np.flatnonzero(np.isfinite(truncate(logits, top_k, top_p))).tolist()

    assert kept(0, 1.0) == [0, 1, 2, 3]
    assert kept(2, 1.0) == [1, 3]
    assert kept(0, 0.39) == [1]
    assert kept(0, 0.5) == [1, 3]
    assert kept(0, 0.75) == [1, 2, 3]
    # Of the two best, 4/7 of the mass lies on the first.
    assert kept(2, 0.55) == [1]


def test_top_k_keeps_k_of_equally_likely_tokens():
    assert np.isfinite(truncate(np.zeros((2, 7), "float32"), 3, 1.0)).sum(axis=1).tolist() == [3, 3]


def test_tokens_are_sampled_in_proportion_to_their_probabilities():
    probabilities = np.array([0.5, 0.0, 0.2, 0.3], "float32")
    with np.errstate(divide="ignore"):
        logits = np.log(np.tile(probabilities, (20_000, 1)))
    uniforms = random_uniforms(np.array([7], "int32"), 20_000)[0]
    counts = np.bincount(invert_cdf(logits, uniforms), minlength=4)
    assert counts[1] == 0
    np.testing.assert_allclose(counts / 20_000, probabilities, atol=0.015)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-23])
def test_the_ends_of_the_uniform_range_never_give_an_impossible_token(uniform):
    logits = np.full((1, 6), -np.inf, "float32")
    logits[0, [2, 4]] = 0
    assert invert_cdf(logits, np.array([uniform], "float32")) == (2 if uniform == 0 else 4)


class _TeacherForcing:
    """A `choose` that records the logits and returns given tokens."""

    def __init__(self, tokens):
        self.tokens, self.logits = tokens, []

    def __call__(self, logits, _uniforms):
        self.logits.append(logits)
        return self.tokens[:, len(self.logits) - 1]


@pytest.mark.parametrize(("cache_dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_the_logits_of_cached_steps_are_those_of_one_full_pass(
    model, tokens, cache_dtype, tolerance
):
    teacher = _TeacherForcing(tokens.astype("int32"))
    uniforms = random_uniforms(np.arange(len(tokens)), LENGTH)
    Decoder(model, teacher, uniforms, False, cache_dtype).decode(np.zeros((4, LENGTH), "int32"), 0)
    full = np.array(model(tokens))
    largest = np.abs(np.stack(teacher.logits, axis=1) - full).max()
    # Relative to the spread of the logits; bfloat16 keeps 8 bits of each key and value.
    assert largest < tolerance * np.ptp(full)
    assert cache_dtype == "float32" or largest > 1e-5 * np.ptp(full)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_bfloat16_cache_gives_valid_tokens_and_keeps_given_ones(model, tokens, jit_compile):
    sampler = Sampler(model, cache_dtype="bfloat16", jit_compile=jit_compile)
    sampled = sampler.complete(tokens, 7, SamplingParams(seed=0))
    np.testing.assert_array_equal(sampled[:, :7], tokens[:, :7])
    assert sampled.min() >= 0 and sampled.max() < SIZES["vocabulary_size"]


def test_a_bfloat16_cache_takes_half_the_memory_and_gives_similar_images(model, sampler):
    config = model.architecture
    assert cache_bytes(config, 3) == 2 * 2 * 24 * LENGTH * 3 * 4
    assert cache_bytes(config, 3, "bfloat16") * 2 == cache_bytes(config, 3)
    assert peak_bytes(config, 3) > 2 * cache_bytes(config, 3)
    sampled = Sampler(model, cache_dtype="bfloat16").sample(8, SamplingParams(seed=0))
    assert np.mean(sampled == sampler.sample(8, SamplingParams(seed=0))) > 0.5


def test_unique_prefixes_groups_neighbours_with_equal_prefixes():
    tokens = np.array([[1, 2, 3], [1, 2, 4], [1, 3, 4], [1, 2, 3]], "int32")

    def shared(num_given):
        leaders, followed = unique_prefixes(tokens, num_given)
        return np.array(leaders).tolist(), np.array(followed).tolist()

    assert shared(0) == ([0], [0, 0, 0, 0])
    assert shared(2) == ([0, 2, 3], [0, 0, 1, 2])
    assert shared(3) == ([0, 1, 2, 3], [0, 1, 2, 3])


@pytest.mark.parametrize("num_given", [7, 9])
def test_completions_of_one_image_share_the_computation_of_its_prefix(
    model, tokens, monkeypatch, num_given
):
    repeated = np.repeat(tokens[:2], 3, axis=0).astype("int32")
    embed, sizes = model.embed, []
    monkeypatch.setattr(model, "embed", lambda x: sizes.append(len(x)) or embed(x))
    sampled = complete(model, repeated, num_given, seed=5)
    assert sizes and set(sizes) == {2}
    monkeypatch.undo()
    np.testing.assert_array_equal(sampled, _uncached(model, repeated, num_given, 5))
    traced_for_six = Sampler(model)
    np.testing.assert_array_equal(
        sampled, traced_for_six.complete(repeated, num_given, SamplingParams(seed=5))
    )


@pytest.mark.parametrize(
    ("image_size", "pixels"), [((16, 16), 32), ((8, 8), 8), ((13, 2), 26), ((1, 5), 5)]
)
def test_segments_are_equal_and_of_whole_rows(image_size, pixels):
    assert segment_length(image_size, 8) == pixels


def test_in_painting_keeps_known_tokens_and_depends_on_the_seed_only(masked_sampler, tokens):
    known = np.random.default_rng(3).random(tokens.shape) < 0.4
    sampled = masked_sampler.inpaint(tokens, known, SamplingParams(seed=1))
    np.testing.assert_array_equal(sampled[known], tokens[known])
    hidden = np.where(known, tokens, 0)
    np.testing.assert_array_equal(
        masked_sampler.inpaint(hidden, known, SamplingParams(seed=1)), sampled
    )
    assert np.any(masked_sampler.inpaint(tokens, known, SamplingParams(seed=99)) != sampled)
    parts = [
        masked_sampler.inpaint(tokens[i : i + 1], known[i : i + 1], SamplingParams(seed=1 + i))
        for i in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), sampled[:2])


def test_in_painting_in_one_round_predicts_all_tokens_from_the_known_ones(tokens):
    model = _model(causal=False)
    known = np.arange(LENGTH) < np.array([[3], [0], [18], [9]])
    sampled = Sampler(model).inpaint(tokens, known, SamplingParams(top_k=1), num_rounds=1)
    best = np.argmax(model(tokens.astype("int32"), ~known), axis=-1)
    np.testing.assert_array_equal(sampled, np.where(known, tokens, best))


def test_in_painting_one_token_per_round_starts_with_the_most_confident(tokens):
    model = _model(causal=False)
    known = np.broadcast_to(np.arange(LENGTH) < LENGTH - 2, tokens.shape)
    sampled = Sampler(model).inpaint(tokens, known, SamplingParams(top_k=1), num_rounds=2)
    probabilities = np.array(model(tokens.astype("int32"), ~known))
    probabilities -= np.log(np.exp(probabilities).sum(axis=-1, keepdims=True))
    for image, seen, expected in zip(tokens.copy(), probabilities, sampled, strict=True):
        first, second = sorted((LENGTH - 2, LENGTH - 1), key=lambda place: -seen[place].max())
        image[first] = seen[first].argmax()
        hidden = np.arange(LENGTH)[None] == second
        image[second] = np.argmax(model(image[None].astype("int32"), hidden)[0, second])
        np.testing.assert_array_equal(expected, image)


def test_a_masked_model_completes_but_does_not_sample(masked_sampler, tokens):
    sampled = masked_sampler.complete(tokens, 7, SamplingParams(seed=0))
    np.testing.assert_array_equal(sampled[:, :7], tokens[:, :7])
    with pytest.raises(InputError, match="cannot sample"):
        masked_sampler.sample(1, SamplingParams(seed=0))


def test_a_causal_model_does_not_in_paint(sampler, tokens):
    with pytest.raises(InputError, match="cannot in-paint"):
        sampler.inpaint(tokens, tokens > 3, SamplingParams(seed=0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"num_given": -1},
        {"num_given": LENGTH + 1},
        {"tokens": np.full((1, LENGTH), 11)},
        {"tokens": np.zeros((1, 5), int)},
    ],
)
def test_invalid_arguments_raise_an_error_of_one_line(sampler, tokens, wrong):
    with pytest.raises(InputError, match="Received: ") as caught:
        request = {"tokens": tokens, "num_given": 3, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        request |= wrong
        tokens, num_given = request.pop("tokens"), request.pop("num_given")
        sampler.complete(tokens, num_given, SamplingParams(**request))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_images", [2, 5])
def test_packed_kernels_give_the_same_images(model, sampler, monkeypatch, num_images):
    monkeypatch.setattr(PackedKernels, "_NUM_COLUMNS", 10)  # several packs per kernel
    assert all(pack.shape[0] > 1 for pack in PackedKernels.pack(model))
    params = SamplingParams(seed=5)
    with mock.patch.object(PackedKernels, "pack", wraps=PackedKernels.pack) as pack:
        sampled = Sampler(model, jit_compile=True).sample(num_images, params)
        pack.assert_called_once()
        np.testing.assert_array_equal(sampled, sampler.sample(num_images, params))
        pack.assert_called_once()
    assert len(np.unique(sampled)) > 4


def test_a_product_with_packed_kernels_equals_the_product_with_the_kernel(model):
    x = np.random.default_rng(3).normal(size=(4, 1, 24)).astype("float32")
    kernel = model.blocks[1].mlp.input_kernel
    product = PackedKernels(model, PackedKernels.pack(model)).matmul(x, kernel)
    np.testing.assert_allclose(product, x @ np.asarray(kernel), rtol=1e-5, atol=1e-6)


def test_in_mixed_precision_kernels_are_cast_before_the_loop_over_pixels():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = _model()
        run = tf.function(lambda seed: sample(model, 2, seed=seed), autograph=False)
        graph = run.get_concrete_function(tf.constant(0)).graph.as_graph_def(add_shapes=True)

        def casts(nodes):
            """Shapes of the matrices that are cast to bfloat16."""
            cast = [one for one in nodes if one.op == "Cast"]
            cast = [one for one in cast if one.attr["DstT"].type == tf.bfloat16.as_datatype_enum]
            shapes = [one.attr["_output_shapes"].list.shape[0].dim for one in cast]
            return [tuple(d.size for d in one) for one in shapes if len(one) == 2]

        kernels = [(24, 72), (24, 24), (24, 96), (96, 24)] * 2
        assert casts(graph.node) == kernels
        assert casts([node for one in graph.library.function for node in one.node_def]) == []

        def decode(matmul):
            uniforms = random_uniforms(tf.constant([4, 5]), LENGTH)
            decoder = Decoder(model, invert_cdf, uniforms, False, "bfloat16", matmul)
            return tf.function(decoder.decode, autograph=False)(tf.zeros([2, LENGTH], tf.int32), 0)

        found = decode(matmul_with_cast_kernels(model))
        np.testing.assert_array_equal(found, decode(keras.ops.matmul))
    finally:
        keras.config.set_dtype_policy("float32")


def test_packed_kernels_serve_products_with_few_rows_only():
    assert [n for n in (1, 2, 8, 32, 33, 256) if PackedKernels.are_faster(n)] == [2, 8, 32]


def test_the_seed_of_an_image_wraps_around_as_int32():
    params = SamplingParams(seed=2**31 - 1, top_k=3)
    assert params.for_image(0) == params
    assert params.for_image(1) == SamplingParams(seed=-(2**31), top_k=3)
    assert SamplingParams(top_k=2**40).as_dict()["top_k"] == 2**31 - 1


@pytest.mark.parametrize("wrong", [{"seed": 2**31}, {"top_k": -1}, {"top_p": 1.5}])
def test_params_out_of_range_raise_an_error_that_names_them(wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(InputError, match=f"{name} must be .*Received: {name}={value}"):
        SamplingParams(**wrong)
