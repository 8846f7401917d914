"""Agreement with Hugging Face's ImageGPT, both ways. Needs torch and transformers.

python -m pip install -r requirements-parity.txt
"""

import numpy as np
import pytest

from igpt_tf.convert.huggingface_export import write_huggingface
from igpt_tf.convert.huggingface_import import HuggingFaceFolder
from igpt_tf.convert.publish import publish
from igpt_tf.sampling.params import SamplingParams
from igpt_tf.sampling.sampler import Sampler
from igpt_tf.savedmodel.load import SavedModel
from tests.convert.random_models import assert_same_weights, random_model, random_palette

pytestmark = pytest.mark.parity

SIZES = {
    "one_head": {"layers": 1, "dim": 16, "heads": 1},
    "three_heads": {"layers": 2, "dim": 24, "heads": 3},
    "five_heads": {"layers": 4, "dim": 40, "heads": 5, "image_size": (6, 6), "vocabulary": 31},
    "wide_image": {"layers": 2, "dim": 32, "heads": 8, "image_size": (3, 7), "vocabulary": 16},
    "published_context": {"dim": 32, "heads": 2, "image_size": (32, 32), "vocabulary": 512},
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is missing: requirements-parity.txt")


@pytest.fixture
def transformers(torch):
    return pytest.importorskip(
        "transformers", reason="transformers is missing: requirements-parity.txt"
    )


@pytest.fixture(params=SIZES)
def pair(request, tmp_path, transformers):
    """(ours, theirs): one network on both sides, theirs opened from a folder of our writing."""
    ours = random_model(**SIZES[request.param])
    palette = random_palette(ours.vocabulary_size)
    write_huggingface(ours, palette, str(tmp_path / "folder"))
    theirs = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "folder")
    return ours, theirs.eval()


def _tokens(model, batch_size=2) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.integers(0, model.vocabulary_size, (batch_size, model.sequence_length))


def _shifted(torch, model, tokens):
    """sos, then all tokens but the last: what their network is fed."""
    sos = np.full((len(tokens), 1), model.vocabulary_size)
    return torch.tensor(np.concatenate([sos, tokens[:, :-1]], axis=1))


def _assert_close(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_logits_agree(pair, torch):
    ours, theirs = pair
    tokens = _tokens(ours)
    _assert_close(ours(tokens), theirs(_shifted(torch, ours, tokens)).logits)


def test_features_agree_with_their_normalised_hidden_states(pair, torch):
    ours, theirs = pair
    tokens = _tokens(ours)
    body = theirs.transformer
    states = body(_shifted(torch, ours, tokens), output_hidden_states=True).hidden_states
    # Theirs are before the norm, but for the last, which is after the final one.
    normed = [block.ln_1(h) for block, h in zip(body.h, states[:-1], strict=True)] + [states[-1]]
    _assert_close(ours.features(tokens), torch.stack([h.mean(dim=1) for h in normed], dim=1))


def test_nats_per_token_agree(pair, torch):
    ours, theirs = pair
    tokens = _tokens(ours)
    labels = torch.tensor(tokens)
    logits = theirs(_shifted(torch, ours, tokens)).logits
    nats = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
    logits = ours(tokens).numpy().astype("float64")
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    own = log_sum - np.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    _assert_close(own.mean(axis=1), nats.mean(dim=1))


def test_nothing_is_left_random_when_their_library_opens_our_folder(pair, tmp_path, transformers):
    kinds = (transformers.ImageGPTForCausalImageModeling, transformers.ImageGPTModel)
    for kind in kinds:
        _, report = kind.from_pretrained(tmp_path / "folder", output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["mismatched_keys"]
        assert {name.split(".")[0] for name in report["unexpected_keys"]} <= {"lm_head"}


def test_greedy_completions_agree_token_by_token(pair, torch):
    ours, theirs = pair
    tokens = _tokens(ours)
    given = max(ours.sequence_length // 2, ours.sequence_length - 24)
    prompt = _shifted(torch, ours, tokens)[:, : given + 1]
    # No pad_token_id: their generator would take tokens of that number in the prompt for padding.
    completed = theirs.generate(prompt, do_sample=False, max_length=ours.sequence_length + 1)
    own = Sampler(ours).complete(tokens, given, SamplingParams(top_k=1))
    np.testing.assert_array_equal(own, completed[:, 1:])


def test_an_imported_folder_becomes_a_saved_model_that_answers_as_theirs(pair, tmp_path, torch):
    theirs = pair[1]
    folder = HuggingFaceFolder(str(tmp_path / "folder"))
    palette = folder.palette()
    report = publish(folder.load(), palette, str(tmp_path), step=0, source="theirs")
    saved = SavedModel(report["saved_model"])
    images = _shown_as_they_are(palette, saved.image_size)
    tokens = palette.encode(images)
    shifted = _shifted(torch, folder.load(), tokens)
    logits = theirs(shifted).logits
    nats = torch.nn.functional.cross_entropy(
        logits.mT, torch.tensor(tokens).long(), reduction="none"
    )
    surprise = saved.signature("score")(images=images)["surprise"]
    _assert_close(surprise.reshape(tokens.shape), nats)
    given = tokens.shape[1] - 5
    choice = {"seed": 0, "temperature": 1.0, "top_k": 1, "top_p": 1.0}
    own = saved.signature("complete")(images=images, num_given=given, **choice)["tokens"]
    completed = theirs.generate(
        shifted[:, : given + 1], do_sample=False, max_length=tokens.shape[1] + 1
    )
    np.testing.assert_array_equal(own, completed[:, 1:])


def _shown_as_they_are(palette, image_size) -> np.ndarray:
    """uint8[2,H,W,3] of the palette's own colours."""
    rng = np.random.default_rng(4)
    return palette.decode(rng.integers(0, len(palette), (2, np.prod(image_size))), image_size)


def test_a_model_that_their_library_saved_opens_here_and_agrees(tmp_path, torch, transformers):
    config = transformers.ImageGPTConfig(
        vocab_size=12, n_positions=25, n_embd=30, n_layer=3, n_head=5
    )
    theirs = transformers.ImageGPTForCausalImageModeling(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if not name.endswith(".bias"):
                parameter.normal_(1.0 if ".ln_" in name else 0.0, 0.2)
    theirs.save_pretrained(tmp_path)
    folder = HuggingFaceFolder(str(tmp_path))
    ours = folder.load()
    tokens = _tokens(ours)
    _assert_close(ours(tokens), theirs(_shifted(torch, ours, tokens)).logits)
    write_huggingface(ours, random_palette(11), str(tmp_path / "again"))
    assert_same_weights(HuggingFaceFolder(str(tmp_path / "again")).load(), ours)


def test_their_image_processor_gives_our_tokens(tmp_path, transformers):
    model = random_model(image_size=(8, 10), vocabulary=64)
    palette = random_palette(64)
    write_huggingface(model, palette, str(tmp_path))
    images = _smooth_images(8, 10)
    processor = transformers.ImageGPTImageProcessor.from_pretrained(tmp_path)
    theirs = np.array(processor(list(images), return_tensors="np")["input_ids"])
    far = _away_from_ties(images, palette)
    assert far.mean() > 0.99
    np.testing.assert_array_equal(palette.encode(images)[far], theirs.reshape(far.shape)[far])


def test_the_palette_of_their_image_processor_is_ours(tmp_path, transformers):
    palette = random_palette(64)
    write_huggingface(random_model(vocabulary=64), palette, str(tmp_path / "ours"))
    processor = transformers.ImageGPTImageProcessor.from_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_bytes(
        (tmp_path / "ours" / "config.json").read_bytes()
    )
    (tmp_path / "ours" / "model.safetensors").rename(tmp_path / "theirs" / "model.safetensors")
    assert HuggingFaceFolder(str(tmp_path / "theirs")).palette().fingerprint == palette.fingerprint


def _smooth_images(height, width, count=6) -> np.ndarray:
    """Gradients with noise: uint8[N,H,W,3]."""
    rng = np.random.default_rng(5)
    ramp = np.linspace(0, 1, height)[:, None, None] * np.linspace(0, 1, width)[:, None]
    colours = rng.uniform(0, 255, (count, 1, 1, 3))
    noise = rng.normal(0, 12, (count, height, width, 3))
    return (ramp * colours + (1 - ramp) * colours[::-1] + noise).clip(0, 255).astype("uint8")


def _away_from_ties(images, palette) -> np.ndarray:
    """bool[N,T]: pixels whose two nearest colours differ by more than float32 can err."""
    pixels = images.reshape(len(images), -1, 1, 3) / 127.5 - 1
    distances = np.sort(((pixels - palette.centroids) ** 2).sum(axis=-1), axis=-1)
    return distances[..., 1] - distances[..., 0] > 1e-5
