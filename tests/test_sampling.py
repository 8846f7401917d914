"""Claims about painting: the cache changes nothing, seeds decide all, what is given stays."""

import numpy as np
import pytest

from igpt_tf import runtime
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.sampling import Sampler, cache_bytes, complete, parts, peak_bytes, sample
from igpt_tf.sampling.cache import segment_length
from igpt_tf.sampling.choosing import draw_uniforms, invert, truncate
from igpt_tf.sampling.decoding import Decoder, beginnings
from igpt_tf.sampling.params import SamplingParams
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


def _naive(model, tokens, num_given, seed):
    """One full pass over the whole image for every pixel, no cache."""
    tokens = np.array(tokens, "int32")
    uniforms = draw_uniforms(np.arange(seed, seed + len(tokens), dtype="int32"), tokens.shape[1])
    for place in range(num_given, tokens.shape[1]):
        tokens[:, place] = invert(model(tokens)[:, place], uniforms[:, place])
    return tokens


def test_cached_sampling_equals_the_naive_one_token_for_token(model, sampler):
    painted = sampler.sample(4, SamplingParams(seed=5))
    np.testing.assert_array_equal(painted, _naive(model, np.zeros((4, LENGTH)), 0, 5))
    assert len(np.unique(painted)) > 4


@pytest.mark.parametrize("num_given", [0, 1, 2, 7, 17, 18])
def test_cached_completion_equals_the_naive_one_from_any_raster_prefix(
    model, sampler, tokens, num_given
):
    painted = sampler.complete(tokens, num_given, SamplingParams(seed=5))
    np.testing.assert_array_equal(painted, _naive(model, tokens, num_given, 5))
    np.testing.assert_array_equal(painted[:, :num_given], tokens[:, :num_given])


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
def test_cached_sampling_equals_the_naive_one_at_other_sizes(sizes):
    model = _model(**sizes)
    painted = Sampler(model).sample(2, SamplingParams(seed=3))
    np.testing.assert_array_equal(painted, _naive(model, np.zeros(painted.shape), 0, 3))


def test_the_jitted_sampler_paints_the_same_images(model, sampler, tokens):
    jitted = Sampler(model, jit_compile=True)
    np.testing.assert_array_equal(
        jitted.sample(4, SamplingParams(seed=5)), sampler.sample(4, SamplingParams(seed=5))
    )
    np.testing.assert_array_equal(
        jitted.complete(tokens, 8, SamplingParams(seed=5, top_k=4)),
        sampler.complete(tokens, 8, SamplingParams(seed=5, top_k=4)),
    )


def test_a_graph_that_was_not_compiled_paints_the_same_images(model, sampler):
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


def test_many_images_are_painted_in_parts_and_stay_what_they_are(model, monkeypatch):
    monkeypatch.setattr(runtime, "num_cores", lambda: 3)
    sizes = (1, 8, 15, 16, 17, 24, 25, 32)
    assert [parts.count_parts(size, 3) for size in sizes] == [1, 1, 1, 2, 1, 3, 1, 2]
    sampler = Sampler(model, jit_compile=True)
    together = sampler.sample(24, SamplingParams(seed=10))
    few = [sampler.sample(4, SamplingParams(seed=10 + start)) for start in range(0, 24, 4)]
    np.testing.assert_array_equal(together, np.concatenate(few))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_new_weights_are_painted_with_at_once(tokens, jit_compile):
    model = _model()
    sampler = Sampler(model, jit_compile=jit_compile)
    before = sampler.complete(tokens, 2, SamplingParams(seed=0))
    model.blocks[0].mlp.input_kernel.assign(-model.blocks[0].mlp.input_kernel)
    assert np.any(sampler.complete(tokens, 2, SamplingParams(seed=0)) != before)


def test_top_k_of_one_is_greedy(model, sampler):
    painted = sampler.sample(2, SamplingParams(seed=0, top_k=1))
    np.testing.assert_array_equal(painted, np.argmax(model(painted), axis=-1))


def test_a_tiny_temperature_or_top_p_is_greedy_too(sampler):
    greedy = sampler.sample(2, SamplingParams(seed=0, top_k=1))
    np.testing.assert_array_equal(
        sampler.sample(2, SamplingParams(seed=3, temperature=1e-6)), greedy
    )
    np.testing.assert_array_equal(sampler.sample(2, SamplingParams(seed=3, top_p=1e-6)), greedy)


def test_no_truncation_is_the_same_as_truncation_that_keeps_everything(sampler):
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


def test_equally_likely_colours_do_not_defeat_top_k():
    assert np.isfinite(truncate(np.zeros((2, 7), "float32"), 3, 1.0)).sum(axis=1).tolist() == [3, 3]


def test_colours_are_drawn_in_proportion_to_their_probabilities():
    chances = np.array([0.5, 0.0, 0.2, 0.3], "float32")
    with np.errstate(divide="ignore"):
        logits = np.log(np.tile(chances, (20_000, 1)))
    uniforms = draw_uniforms(np.array([7], "int32"), 20_000)[0]
    counts = np.bincount(invert(logits, uniforms), minlength=4)
    assert counts[1] == 0
    np.testing.assert_allclose(counts / 20_000, chances, atol=0.015)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-23])
def test_the_ends_of_the_uniform_range_never_draw_an_impossible_colour(uniform):
    logits = np.full((1, 6), -np.inf, "float32")
    logits[0, [2, 4]] = 0
    assert invert(logits, np.array([uniform], "float32")) == (2 if uniform == 0 else 4)


class _Teacher:
    """In a brush's place: writes down the logits and paints what it is told."""

    def __init__(self, tokens):
        self.tokens, self.logits = tokens, []

    def choose(self, logits, _uniforms):
        self.logits.append(logits)
        return self.tokens[:, len(self.logits) - 1]


@pytest.mark.parametrize(("cache_dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_the_logits_of_cached_steps_are_those_of_one_full_pass(
    model, tokens, cache_dtype, tolerance
):
    teacher = _Teacher(tokens.astype("int32"))
    uniforms = draw_uniforms(np.arange(len(tokens)), LENGTH)
    Decoder(model, teacher, uniforms, False, cache_dtype).paint(np.zeros((4, LENGTH), "int32"), 0)
    full = np.array(model(tokens))
    largest = np.abs(np.stack(teacher.logits, axis=1) - full).max()
    # Relative to the spread of the logits; bfloat16 keeps 8 bits of each key and value.
    assert largest < tolerance * np.ptp(full)
    assert cache_dtype == "float32" or largest > 1e-5 * np.ptp(full)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_bfloat16_cache_paints_valid_tokens_and_keeps_what_is_given(model, tokens, jit_compile):
    sampler = Sampler(model, cache_dtype="bfloat16", jit_compile=jit_compile)
    painted = sampler.complete(tokens, 7, SamplingParams(seed=0))
    np.testing.assert_array_equal(painted[:, :7], tokens[:, :7])
    assert painted.min() >= 0 and painted.max() < SIZES["vocabulary_size"]


def test_a_bfloat16_cache_holds_half_and_paints_nearly_alike(model, sampler):
    config = model.get_config()
    assert cache_bytes(config, 3) == 2 * 2 * 24 * LENGTH * 3 * 4
    assert cache_bytes(config, 3, "bfloat16") * 2 == cache_bytes(config, 3)
    assert peak_bytes(config, 3) > 2 * cache_bytes(config, 3)
    painted = Sampler(model, cache_dtype="bfloat16").sample(8, SamplingParams(seed=0))
    assert np.mean(painted == sampler.sample(8, SamplingParams(seed=0))) > 0.5


def test_neighbours_that_begin_alike_share_a_beginning():
    tokens = np.array([[1, 2, 3], [1, 2, 4], [1, 3, 4], [1, 2, 3]], "int32")

    def shared(num_given):
        leaders, followed = beginnings(tokens, num_given)
        return np.array(leaders).tolist(), np.array(followed).tolist()

    assert shared(0) == ([0], [0, 0, 0, 0])
    assert shared(2) == ([0, 2, 3], [0, 0, 1, 2])
    assert shared(3) == ([0, 1, 2, 3], [0, 1, 2, 3])


@pytest.mark.parametrize("num_given", [7, 9])
def test_completions_of_one_image_compute_its_beginning_once(model, tokens, monkeypatch, num_given):
    repeated = np.repeat(tokens[:2], 3, axis=0).astype("int32")
    embed, sizes = model.embed, []
    monkeypatch.setattr(model, "embed", lambda x: sizes.append(len(x)) or embed(x))
    painted = complete(model, repeated, num_given, seed=5)
    assert sizes and set(sizes) == {2}
    monkeypatch.undo()
    np.testing.assert_array_equal(painted, _naive(model, repeated, num_given, 5))
    traced_for_six = Sampler(model)
    np.testing.assert_array_equal(
        painted, traced_for_six.complete(repeated, num_given, SamplingParams(seed=5))
    )


@pytest.mark.parametrize(
    ("image_size", "pixels"), [((16, 16), 32), ((8, 8), 8), ((13, 2), 26), ((1, 5), 5)]
)
def test_segments_are_equal_and_of_whole_rows(image_size, pixels):
    assert segment_length(image_size, 8) == pixels


def test_in_painting_keeps_known_pixels_and_depends_on_the_seed_alone(masked_sampler, tokens):
    known = np.random.default_rng(3).random(tokens.shape) < 0.4
    painted = masked_sampler.inpaint(tokens, known, SamplingParams(seed=1))
    np.testing.assert_array_equal(painted[known], tokens[known])
    hidden = np.where(known, tokens, 0)
    np.testing.assert_array_equal(
        masked_sampler.inpaint(hidden, known, SamplingParams(seed=1)), painted
    )
    assert np.any(masked_sampler.inpaint(tokens, known, SamplingParams(seed=99)) != painted)
    parts = [
        masked_sampler.inpaint(tokens[i : i + 1], known[i : i + 1], SamplingParams(seed=1 + i))
        for i in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), painted[:2])


def test_in_painting_in_one_round_predicts_every_pixel_from_the_known_ones(tokens):
    model = _model(causal=False)
    known = np.arange(LENGTH) < np.array([[3], [0], [18], [9]])
    painted = Sampler(model).inpaint(tokens, known, SamplingParams(top_k=1), num_rounds=1)
    best = np.argmax(model(tokens.astype("int32"), ~known), axis=-1)
    np.testing.assert_array_equal(painted, np.where(known, tokens, best))


def test_in_painting_pixel_by_pixel_takes_the_surest_first(tokens):
    model = _model(causal=False)
    known = np.broadcast_to(np.arange(LENGTH) < LENGTH - 2, tokens.shape)
    painted = Sampler(model).inpaint(tokens, known, SamplingParams(top_k=1), num_rounds=2)
    chances = np.array(model(tokens.astype("int32"), ~known))
    chances -= np.log(np.exp(chances).sum(axis=-1, keepdims=True))
    for image, seen, expected in zip(tokens.copy(), chances, painted, strict=True):
        first, second = sorted((LENGTH - 2, LENGTH - 1), key=lambda place: -seen[place].max())
        image[first] = seen[first].argmax()
        hidden = np.arange(LENGTH)[None] == second
        image[second] = np.argmax(model(image[None].astype("int32"), hidden)[0, second])
        np.testing.assert_array_equal(expected, image)


def test_a_masked_model_completes_but_does_not_sample(masked_sampler, tokens):
    painted = masked_sampler.complete(tokens, 7, SamplingParams(seed=0))
    np.testing.assert_array_equal(painted[:, :7], tokens[:, :7])
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
def test_what_cannot_be_painted_is_refused_in_one_line(sampler, tokens, wrong):
    with pytest.raises(InputError, match="Received: ") as caught:
        request = {"tokens": tokens, "num_given": 3, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        request |= wrong
        tokens, num_given = request.pop("tokens"), request.pop("num_given")
        sampler.complete(tokens, num_given, SamplingParams(**request))
    assert "\n" not in str(caught.value)
