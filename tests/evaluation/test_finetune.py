"""Tests of fine-tuning: it learns, it resumes, its SavedModel classifies."""

import gc
import itertools
import json
from types import SimpleNamespace
from unittest import mock

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf import config
from igpt_tf.data import ArrayExamples, Source, digits
from igpt_tf.errors import InputError
from igpt_tf.evaluation import features, scores
from igpt_tf.evaluation.classifier_scores import Scorer, Scores
from igpt_tf.evaluation.finetune import FineTuning, finetune, search
from igpt_tf.evaluation.splits import labelled_splits
from igpt_tf.model import Classifier, ImageGPT
from igpt_tf.objectives import Autoregressive, Joint
from igpt_tf.palette import Palette
from igpt_tf.sampling.params import SamplingParams
from igpt_tf.sampling.sampler import Sampler
from igpt_tf.savedmodel.load import SavedModel, load_model
from igpt_tf.savedmodel.write import write_pretrained
from igpt_tf.training.loop import TrainingLoop
from igpt_tf.training.mesh import ShardedStrategy
from igpt_tf.training.rewinds import NonFiniteLoss
from igpt_tf.training.workdir import Workdir
from tests.evaluation.tiny import write_tiny

RARELY = ("intervals.evaluate_every = 100", "intervals.checkpoint_every = 100")
RECIPE = ("gin/tools/finetune.gin", "gin/tools/finetune_digits.gin")
SHORT = (
    "finetune.batch_size = 32",
    "intervals.evaluate_every = 10",
    "intervals.checkpoint_every = 10",
    "intervals.num_heldout_images = 64",
)
STEPS = (
    "finetune.learning_rates = [0.02, 0.005]",
    "finetune.search_steps = 100",
    "finetune.num_steps = 300",
    "intervals.evaluate_every = 50",
    "intervals.checkpoint_every = 50",
)


def run(saved_model, workdir, *bindings, **arguments):
    """Runs the program's root as the program does."""
    gin.clear_config()
    own = f"finetune.saved_model = {str(saved_model)!r}"
    config.parse(list(RECIPE), [own, *SHORT, *bindings])
    finetune(workdir=str(workdir), **arguments)
    return json.loads((workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model") / "export" / "0", num_layers=1)


@pytest.fixture(scope="module")
def masked_model(tmp_path_factory):
    keras.utils.set_random_seed(0)
    shape = {"image_size": (8, 8), "vocabulary_size": 17, "num_layers": 1, "hidden_dim": 16}
    return write_pretrained(
        ImageGPT(**shape, num_heads=2, causal=False),
        Palette.grey(17),
        str(tmp_path_factory.mktemp("masked") / "0"),
        objective={"name": "masked", "probability": 0.15},
        data=digits().description,
    )


@pytest.fixture(scope="module")
def tuned(saved_model, tmp_path_factory):
    """Workdir of a finished run over two learning rates."""
    workdir = tmp_path_factory.mktemp("tuned")
    run(saved_model, workdir, *STEPS)
    return workdir


def weights_of(workdir, step):
    reader = tf.train.load_checkpoint(str(workdir / f"checkpoints/ckpt-{step}"))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names if name.startswith("weights/")}


def test_fine_tuning_beats_chance_and_continues_the_best_rate(tuned):
    result = json.loads((tuned / "result.json").read_text())
    assert result["accuracy"]["valid"] > 0.4  # a tenth by chance
    best = max(result["search"], key=lambda row: row["valid_accuracy"])
    assert result["learning_rate"] == best["learning_rate"] and len(result["search"]) == 2
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    valid = [line for line in lines if line["split"] == "valid"]
    assert [line["step"] for line in valid] == list(range(50, 350, 50))
    assert result["step"] == max(valid, key=lambda line: line["accuracy"])["step"]
    assert {"loss", "images_per_second"} <= lines[0].keys() or lines[0]["split"] == "valid"


def test_few_labels_are_balanced_and_accuracies_have_an_interval(saved_model, tmp_path, capsys):
    few = ("finetune.labels_per_class = 3", "finetune.learning_rates = [0.01]")
    steps = ("finetune.num_steps = 2", "intervals.evaluate_every = 1", "finetune.search_steps = 2")
    result = run(saved_model, tmp_path, *few, *steps, "intervals.checkpoint_every = 2")
    assert result["num_images"] == {"train": 30, "valid": 360}
    assert result["loss_name"] == "nats per token"
    low, high = result["accuracy_interval"]["valid"]
    assert low < result["accuracy"]["valid"] < high
    assert "held-out (n=360)" in capsys.readouterr().out


def test_confusion_matrix_counts_every_held_out_image_under_its_label(tuned):
    report = json.loads((tuned / "confusion.json").read_text())
    confusion = np.array(report["confusion"])
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(digits().valid.labels))
    result = json.loads((tuned / "result.json").read_text())
    assert np.trace(confusion) / confusion.sum() == pytest.approx(result["accuracy"]["valid"])
    assert (tuned / "confusion.png").stat().st_size > 1000


def test_signature_classify_equals_the_live_model(tuned):
    saved = SavedModel(str(tuned / "export"))
    network, palette, _ = load_model(saved.path)
    model = Classifier(network, 10)
    variables = tf.train.load_checkpoint(f"{saved.path}/variables/variables")
    model.head.assign(variables.get_tensor("weights/head/.ATTRIBUTES/VARIABLE_VALUE"))
    images, labels = digits().valid.arrays()
    probabilities, decided = model.classify(palette.encode(images))
    answer = saved.signature("classify")(images=images)
    np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
    np.testing.assert_array_equal(answer["labels"], decided)
    assert answer["labels"].dtype == np.int32
    result = json.loads((tuned / "result.json").read_text())
    assert np.mean(answer["labels"] == labels) == pytest.approx(result["accuracy"]["valid"])


def test_fine_tuned_model_has_all_signatures_of_a_pretrained_one(tuned, saved_model, tmp_path):
    saved = SavedModel(str(tuned / "export"))
    of_pretrained = set(SavedModel(saved_model).signature_names)
    assert of_pretrained | {"classify", "classify_bytes"} == set(saved.signature_names)
    network, palette, _ = load_model(saved.path)
    [tokens] = Sampler(network).sample(1, SamplingParams(seed=3))
    choice = {"seed": 3, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    sampled = saved.signature("sample")(num_images=1, **choice)
    np.testing.assert_array_equal(sampled["tokens"], [tokens])
    np.testing.assert_array_equal(sampled["images"], palette.decode(tokens[None], (8, 8)))
    completed = saved.signature("complete")(images=sampled["images"], num_given=64, **choice)
    np.testing.assert_array_equal(completed["tokens"], [tokens])
    assert saved.metadata["class_names"] == [str(i) for i in range(10)]
    assert saved.metadata["task"]["name"] == "classification"
    images = digits().valid.arrays()[0][:3]
    files = [tf.io.encode_png(image).numpy() for image in images]
    by_pixels = saved.signature("serving_default")(images=images)
    by_file = saved.signature("classify_bytes")(image_bytes=files)
    np.testing.assert_allclose(by_file["probabilities"], by_pixels["probabilities"], atol=1e-6)
    assert features.pretrained_encoder(saved).encode(images).shape == (3, 2, 16)
    report = scores.evaluate(saved_model=saved.path, workdir=str(tmp_path), batch_size=64)
    assert report["nats_per_token"] == pytest.approx(saved.metadata["nats_per_token"], rel=1e-4)


def test_finished_run_is_left_alone(saved_model, tuned, capsys):
    before = (tuned / "result.json").stat().st_mtime_ns
    run(saved_model, tuned, *STEPS)
    assert "finished" in capsys.readouterr().out
    assert (tuned / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("fatal", [pytest.param(3, marks=pytest.mark.slow), 9])
def test_interrupted_run_ends_with_the_same_weights(
    saved_model, tuned, tmp_path, monkeypatch, fatal
):
    # Evaluations 1 and 2 belong to the first trial, 3 and 4 to the second, 5 to 10 to the run.
    calls, score = [], Scorer.score

    def dying(self, batches):
        calls.append(1)
        if len(calls) == fatal:
            raise SystemExit(137)
        return score(self, batches)

    monkeypatch.setattr(Scorer, "score", dying)
    with pytest.raises(SystemExit):
        run(saved_model, tmp_path, *STEPS)
    gc.collect()  # releases the lock, as the end of the process would
    assert run(saved_model, tmp_path, *STEPS) == json.loads((tuned / "result.json").read_text())
    one, two = (weights_of(workdir, 300) for workdir in (tuned, tmp_path))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_run_without_improvement_ends_early_and_exports_its_best_step(
    saved_model, tmp_path, monkeypatch
):
    accuracies = iter([0.3, 0.5, 0.4, 0.5, 0.4, 0.9, 0.9])
    monkeypatch.setattr(Scores, "accuracy", property(lambda _: next(accuracies, 0.1)))
    rate = "finetune.learning_rates = [0.01]"
    result = run(saved_model, tmp_path, rate, "finetune.patience = 30", "finetune.num_steps = 200")
    assert result["step"] == 20 and (tmp_path / "export" / "20").is_dir()
    assert (tmp_path / "checkpoints" / "ckpt-50.index").exists()
    assert not (tmp_path / "checkpoints" / "ckpt-60.index").exists()


def test_diverging_rate_is_dropped(tmp_path):
    tried = []

    class Stub:
        pipeline = SimpleNamespace(strategy=tf.distribute.get_strategy())

        def run(self, folder, rate, num_steps):
            tried.append(rate)
            if rate > 1:
                raise NonFiniteLoss(0, num_steps)
            checkpoints = SimpleNamespace(best_step=7, best_loss=0.25)
            return SimpleNamespace(checkpoints=checkpoints), None

    folder = Workdir(str(tmp_path))
    for _ in range(2):  # the second time from the files
        rows, best = search(Stub(), folder, [10.0, 0.1], 10)
        gc.collect()
        assert best == 0.1 and [row["valid_accuracy"] for row in rows] == [None, 0.75]
    assert tried == [10.0, 0.1]
    with pytest.raises(InputError, match="at every learning rate"):
        search(Stub(), folder, [20.0, 30.0], 10)


def test_masked_model_learns_and_predicts_independently_of_the_batch(masked_model, tmp_path):
    rate = "finetune.learning_rates = [0.01]"
    result = run(masked_model, tmp_path, rate, "finetune.num_steps = 300", *RARELY)
    assert result["accuracy"]["valid"] > 0.25
    saved = SavedModel(str(tmp_path / "export"))
    assert saved.metadata["task"]["num_masks"] == 5
    images = digits().valid.arrays()[0][:6]
    together = saved.signature("classify")(images=images)
    again = saved.signature("classify")(images=images[::-1])
    np.testing.assert_array_equal(again["labels"][::-1], together["labels"])
    np.testing.assert_allclose(
        again["probabilities"][::-1], together["probabilities"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("from_scratch", [False, True])
def test_only_from_scratch_starts_from_random_weights(saved_model, from_scratch):
    keras.utils.set_random_seed(5)
    fine_tuning = SimpleNamespace(
        model=SavedModel(saved_model),
        from_scratch=from_scratch,
        layer=None,
        dropout=0.0,
        objective=Joint(Autoregressive()),
        splits=SimpleNamespace(num_classes=10),
    )
    classifier = FineTuning.new_classifier(fine_tuning)
    pretrained, _, _ = load_model(saved_model)
    assert not np.any(classifier.head.numpy())
    pairs = zip(classifier.network.weights, pretrained.weights, strict=True)
    equal = [np.array_equal(own.numpy(), other.numpy()) for own, other in pairs]
    assert all(equal) != from_scratch


def small_source(images, labels, class_names=("a", "b")):
    part = ArrayExamples(images, labels)
    return Source(part, part, None, class_names, "digits")


def test_test_split_has_a_line_of_its_own(saved_model, tmp_path):
    part = digits().valid.take(np.arange(40))
    source = Source(part, part, part, digits().class_names, "digits")
    rate = "finetune.learning_rates = [0.01]"
    result = run(saved_model, tmp_path, rate, "finetune.num_steps = 10", source=source)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (lines[-1]["step"], lines[-1]["split"]) == (10, "test")
    assert lines[-1]["accuracy"] == pytest.approx(result["accuracy"]["test"], rel=1e-5)


@pytest.fixture(scope="module")
def three_parts():
    """A source with a test split: 96, 48 and 40 digits."""
    whole, stops = digits().train, np.cumsum([0, 96, 48, 40])
    parts = [whole.take(np.arange(*stop)) for stop in itertools.pairwise(stops)]
    return Source(*parts, digits().class_names, "digits")


REFIT = (
    "finetune.refit = True",
    "finetune.dropout = 0.3",
    "finetune.learning_rates = [0.01]",
    "finetune.num_steps = 20",
)


def test_a_refit_trains_on_held_out_images_too_and_resumes(
    saved_model, three_parts, tmp_path, monkeypatch
):
    chosen = run(saved_model, tmp_path / "chosen", *REFIT[1:], source=three_parts)
    result = run(saved_model, tmp_path / "whole", *REFIT, source=three_parts)
    assert result["refit"] and not chosen["refit"] and result["dropout"] == 0.3
    assert result["step"] == chosen["step"]
    assert result["accuracy"]["valid"] == chosen["accuracy"]["valid"]
    step = result["step"]
    weights = weights_of(tmp_path / "whole" / "refit", step)
    before = weights_of(tmp_path / "chosen", step)
    assert any(np.abs(weights[name] - before[name]).max() > 1e-4 for name in weights)

    saved = SavedModel(str(tmp_path / "whole" / "export" / str(step)))
    images, labels = three_parts.test.arrays()
    correct = saved.signature("classify")(images=images)["labels"] == labels
    assert result["accuracy"]["test"] == pytest.approx(correct.mean())
    assert saved.metadata["nats_per_token"] == pytest.approx(result["nats_per_token"]["test"])

    steps, save = [], TrainingLoop.save

    def dying(self):
        save(self)
        if self.workdir.path.endswith("refit"):
            steps.append(self.step)
            raise SystemExit(137)

    monkeypatch.setattr(TrainingLoop, "save", dying)
    one_by_one = "intervals.checkpoint_every = 5"
    with pytest.raises(SystemExit):
        run(saved_model, tmp_path / "killed", *REFIT, one_by_one, source=three_parts)
    assert steps == [5] and step > 5
    gc.collect()  # releases the lock, as the end of the process would
    monkeypatch.setattr(TrainingLoop, "save", save)
    assert run(saved_model, tmp_path / "killed", *REFIT, source=three_parts) == result
    resumed = weights_of(tmp_path / "killed" / "refit", step)
    for name, value in weights.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_refit_with_few_labels_is_refused(saved_model, three_parts, tmp_path):
    few = "finetune.labels_per_class = 2"
    with pytest.raises(InputError, match="labels of all held-out images to the few"):
        run(saved_model, tmp_path / "never", REFIT[0], few, source=three_parts)
    assert not (tmp_path / "never").exists()


def test_an_epoch_of_merged_splits_has_every_image_once(three_parts):
    merged = labelled_splits(three_parts).merged
    order = merged.order(tf.range(144, dtype=tf.int64), seed=3, shuffle=True)
    np.testing.assert_array_equal(np.sort(order), np.arange(144))
    expected = [three_parts.train.labels, three_parts.valid.labels]
    np.testing.assert_array_equal(merged.labels, np.concatenate(expected))


def test_unsuitable_data_are_refused_in_one_line(saved_model, tmp_path):
    images = np.zeros((12, 8, 8, 3), "uint8")
    sources = {
        "no labels": small_source(images, None, None),
        "two classes": small_source(images, np.zeros(12, "int32")),
        "0 to 1": small_source(images, np.arange(12) % 3),
        "8x8 pixels": small_source(images[:, :6, :6], np.arange(12) % 2),
    }
    for message, source in sources.items():
        with pytest.raises(InputError, match=message):
            run(saved_model, tmp_path / "never", source=source)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    "binding, message",
    [
        ("finetune.learning_rates = []", "at least one learning rate"),
        ("finetune.learning_rates = [0.0]", "above 0"),
        ("joint.generative_weight = -1.0", "0 or more"),
        ("finetune.num_steps = 0", "num_steps must be 1"),
        ("finetune.layer = 2", "layers 0 to 1"),
        ("finetune.dropout = 1.0", "below 1. Received: dropout=1.0"),
        ("finetune.refit = True", "this data set has none; leave it out"),
        ("intervals.evaluate_every = 0", "must be measured"),
        ("build_optimizer.learning_rate = 0.1", "build_optimizer"),
    ],
)
def test_wrong_configuration_is_refused(saved_model, tmp_path, binding, message):
    import igpt_tf.training.train  # noqa: F401 - so that gin knows build_optimizer

    with pytest.raises((InputError, ValueError), match=message):
        run(saved_model, tmp_path / "never", binding)
    assert not (tmp_path / "never").exists()


def test_sharded_strategy_is_refused_in_one_line(saved_model, tmp_path):
    strategy = mock.create_autospec(ShardedStrategy, instance=True)
    with pytest.raises(InputError, match="fine-tuning holds the whole model on each device"):
        run(saved_model, tmp_path, strategy=strategy)
