"""Linear probe: accuracy of linear classifiers on every layer of a model and on baselines."""

import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import gin
import numpy as np
from tqdm import tqdm

from igpt_tf import config, files, runtime
from igpt_tf.data import Source
from igpt_tf.errors import InputError
from igpt_tf.evaluation import features, plots
from igpt_tf.evaluation.features import Encoder, FeatureMatrix, Features, cached_features
from igpt_tf.evaluation.splits import SPLIT_TITLES, Splits, labelled_splits, resolve_source
from igpt_tf.formatting import few_images_warning, interval_text, percent, table, wilson_interval
from igpt_tf.savedmodel.load import SavedModel

NO_TEST_NOTE = (
    "No test split: accuracies are those of the held-out images that choices are made on."
)
_MAX_WORKERS = 4  # each holds the features of one layer in memory

# Features of a split: one entry, or one per mask. Classifiers are fitted on the first entry.
Views = Sequence[Features]


@gin.configurable
def linear_probe(
    *,
    saved_model: str,
    workdir: str,
    source: Source | None = None,
    solver: "Solver | None" = None,
    layers: int = 1,
    num_masks: int = 5,
    num_train: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> dict:
    """Probes every layer of a model and of the baselines on the same split.

    The solver's setting and the best layer are chosen on the held-out images. Where there is a
    test split, classifiers are then fitted again on training and held-out images together and
    measured on the test images; elsewhere the held-out accuracy is reported.

    A masked model is probed as in the paper: each training image has one random mask; a held-out
    or test image is classified under `num_masks` masks, and the majority decides. Its features
    without masks are probed too, as one of the baselines; no baseline has masked inputs.

    Args:
        saved_model: Path of the model.
        workdir: Folder for `linear_probe.json`, `linear_probe.png` and the feature cache.
        source: Labelled images; None for the model's training data.
        solver: Fits the classifiers; None for `LBFGS()`.
        layers: If above 1, this many layers around the best one are also probed, concatenated.
        num_masks: Masks per image for masked models; 0 probes without masks only.
        num_train: Number of random training images; None for all of them.
        batch_size: Images per call of the network.
        seed: Random seed of the choice of training images and of the untrained network.

    Returns:
        The content of `linear_probe.json`: "layers" with a row per layer, "best_layer",
        "concatenated", "baselines", "num_images" per split, "measured_on", ... A row has an
        accuracy and its 95 % Wilson interval per split, and the chosen setting of the solver.

    Raises:
        InputError: The data set does not fit the model, or has no labels or a single class.

    Example:
        linear_probe(saved_model="runs/digits/export", workdir="runs/digits/linear_probe")

    Source: paper, sections 2.4, 3.4 and 4.2; appendix on iGPT-XL (concatenated layers).
    """
    config.refuse_unread_bindings()
    files.make_workdir(workdir)
    model = SavedModel(saved_model)
    solver = solver or LBFGS()
    _check_numbers(layers, num_masks, model)
    source = resolve_source(model, source, "linear_probe")
    splits = labelled_splits(source, num_train, seed)
    encoders = _encoders(model, num_masks, seed)
    views, *baselines = cached_views(
        encoders, splits, os.path.join(workdir, "features"), batch_size=batch_size
    )
    titles = [each[0].title for each in encoders]
    rows = probe_layers(views, splits.num_classes, solver, title=titles[0])
    best = best_row(rows)
    report = {
        "saved_model": model.path,
        "step": model.metadata.get("step"),
        "data": source.description,
        "num_images": splits.sizes,
        "num_classes": splits.num_classes,
        "num_masks": num_masks if features.has_random_inputs(model) else 0,
        "measured_on": splits.measured_on,
        "solver": solver.setting,
        "layers": rows,
        "best_layer": best,
        "concatenated": _concatenated(views, splits.num_classes, solver, best["layer"], layers),
        "baselines": {},
    }
    for baseline, title in zip(baselines, titles[1:], strict=True):
        rows = probe_layers(baseline, splits.num_classes, solver, title=title)
        report["baselines"][title.replace(" ", "_")] = {**best_row(rows), "layers": rows}
    files.write_json(os.path.join(workdir, "linear_probe.json"), report)
    plots.accuracy_by_layer(os.path.join(workdir, "linear_probe.png"), report)
    return report


def format_report(report: dict) -> str:
    """The report of `linear_probe` as a table: a row per layer, then the baselines."""
    best = report["best_layer"]["layer"]
    rows = [
        (f"layer {row['layer']}" + (" (best)" if row["layer"] == best else ""), row)
        for row in report["layers"]
    ]
    if report["concatenated"]:
        layers = report["concatenated"]["layers"]
        rows.append((f"layers {layers[0]} to {layers[-1]}", report["concatenated"]))
    for name, row in report["baselines"].items():
        layer = f", layer {row['layer']}" if len(row["layers"]) > 1 else ""
        rows.append((name.replace("_", " ") + layer, row))
    measured = ["valid", "test"] if report["measured_on"] == "test" else ["valid"]
    header = ["linear probe"]
    for split in measured:
        header += [f"{SPLIT_TITLES[split]} (n={report['num_images'][split]:,})", "95 % interval"]
    cells = []
    for title, row in rows:
        cells.append([title])
        for split in measured:
            cells[-1] += [
                percent(row[f"{split}_accuracy"]),
                interval_text(row[f"{split}_interval"]),
            ]
        cells[-1].append(f"{row[report['solver']]:g}")
    notes = [few_images_warning(report["num_images"][measured[-1]])]
    if report["num_masks"]:
        one_mask = report["best_layer"].get(f"{measured[-1]}_accuracy_one_mask")
        notes.append(
            f"Masked inputs: the majority of {report['num_masks']} masks per image decides"
            + (f"; the best layer has {percent(one_mask)} with one mask." if one_mask else ".")
        )
    if "test" not in measured:
        notes.append(NO_TEST_NOTE)
    return "\n".join([table([*header, report["solver"]], cells), *filter(None, notes)])


def _encoders(model: SavedModel, num_masks: int, seed: int) -> list[list[Encoder]]:
    """The encoders to probe, the model's first; a list of several encoders has one per mask."""
    pretrained = features.pretrained_encoder(model)
    baselines = [
        [features.raw_pixels_encoder()],
        [features.palette_counts_encoder(model)],
        [features.untrained_encoder(model, seed)],
    ]
    if not (num_masks and features.has_random_inputs(model)):
        return [[pretrained], *baselines]
    unmasked = dataclasses.replace(pretrained, title="pretrained network without masks")
    return [features.masked_encoders(model, num_masks), [unmasked], *baselines]


def _check_numbers(num_layers: int, num_masks: int, model: SavedModel) -> None:
    available = model.metadata["model"]["num_layers"] + 1
    if not 1 <= num_layers <= available:
        raise InputError(
            f"the number of concatenated layers must be 1 to {available}, the layers of the "
            f"model. Received: layers={num_layers}"
        )
    if num_masks < 0:
        raise InputError(f"num_masks must be 0 or more. Received: {num_masks=}")


def cached_views(
    encoders: Sequence[Sequence[Encoder]], splits: Splits, cache: str, *, batch_size: int
) -> list[dict[str, list[Features]]]:
    """Features per split, for each list of encoders; each split is read once for all of them.

    A list of several encoders is the same network under different masks: the training images have
    the first alone.
    """
    views = [{} for _ in encoders]
    for name, examples in splits:
        chosen = [each[:1] if name == "train" else each for each in encoders]
        found = iter(
            cached_features(
                list(itertools.chain(*chosen)),
                examples,
                cache,
                batch_size=batch_size,
                title=f"features, {SPLIT_TITLES[name]}",
            )
        )
        for view, each in zip(views, chosen, strict=True):
            view[name] = list(itertools.islice(found, len(each)))
    return views


def probe_layers(
    views: dict[str, Views], num_classes: int, solver: "Solver", *, title: str
) -> list[dict]:
    """Probes each layer separately; returns {"layer", ...} with the rows of `probe_one`."""

    def probe(layer):
        return {"layer": layer, **probe_one(views, [layer], num_classes, solver)}

    return fit_each(probe, range(views["train"][0].num_layers), title)


def _concatenated(
    views: dict[str, Views], num_classes: int, solver: "Solver", best: int, num_layers: int
) -> dict | None:
    """Probes `num_layers` layers around the best one, concatenated; None for one layer."""
    if num_layers == 1:
        return None
    layers = neighbouring_layers(best, num_layers, views["train"][0].num_layers)
    title = f"{num_layers} layers concatenated"
    [row] = fit_each(lambda each: probe_one(views, each, num_classes, solver), [layers], title)
    return {"layers": layers, **row}


def probe_one(
    views: dict[str, Views], layers: Sequence[int], num_classes: int, solver: "Solver"
) -> dict:
    """Probes the concatenation of `layers`.

    Returns:
        {"valid_accuracy", "valid_interval", the solver's setting chosen on the held-out images},
        and "test_accuracy", "test_interval" after the second fit if there is a test split. With
        several masks also "valid_accuracy_one_mask", ..., the mean accuracy without a vote.
    """
    train = FeatureMatrix(views["train"], layers)
    candidates = solver.fit(train, num_classes, solver.values)
    scores = [_score("valid", classifier, views["valid"], layers) for classifier in candidates]
    best = max(range(len(scores)), key=lambda index: scores[index]["valid_accuracy"])
    row = {solver.setting: solver.values[best], **scores[best]}
    if "test" in views:
        both = FeatureMatrix([views["train"][0], views["valid"][0]], layers)
        [classifier] = solver.fit(both, num_classes, [solver.values[best]])
        row |= _score("test", classifier, views["test"], layers)
    return row


def _score(split: str, classifier: "LinearClassifier", views: Views, layers) -> dict:
    """Accuracy of the majority vote over views, with its interval."""
    predictions = np.stack([classifier.predict(FeatureMatrix([view], layers)) for view in views])
    labels = views[0].labels
    accuracy = float((majority(predictions, classifier.num_classes) == labels).mean())
    row = {
        f"{split}_accuracy": accuracy,
        f"{split}_interval": wilson_interval(accuracy, len(labels)),
    }
    if len(views) > 1:
        row[f"{split}_accuracy_one_mask"] = float((predictions == labels).mean())
    return row


def majority(predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """int[N]: the most frequent class of each column of `predictions` int[K,N].

    A tie goes to the class predicted first, i.e. under the earliest mask: masks are random, so
    that ties are broken at random, as in the paper, but reproducibly.
    """
    votes = np.zeros((predictions.shape[1], num_classes), "float32")
    for index, predicted in enumerate(predictions):
        votes[np.arange(len(predicted)), predicted] += 1 + 2.0 ** -(index + 2)
    return votes.argmax(axis=1)


def best_row(rows: list[dict]) -> dict:
    """The row with the highest held-out accuracy, the first one on a tie."""
    return max(rows, key=lambda row: row["valid_accuracy"])


def neighbouring_layers(best: int, num_layers: int, available: int) -> list[int]:
    """`num_layers` successive layers centred on `best`, shifted inwards at the ends."""
    first = min(max(best - num_layers // 2, 0), available - num_layers)
    return list(range(first, first + num_layers))


def fit_each(fit: Callable, items: Sequence, title: str) -> list:
    """`[fit(item) for item in items]` in a few threads, with a progress bar."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    workers = min(_MAX_WORKERS, runtime.num_cores())
    # [C,N] @ [N,D] is too small to share: two threads of BLAS take 10 times as long as one.
    with threadpool_limits(1), warnings.catch_warnings(), ThreadPoolExecutor(workers) as threads:
        # Reaching `max_steps` is early stopping, not an error.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return list(tqdm(threads.map(fit, items), total=len(items), unit="layer", desc=title))


@dataclass(frozen=True)
class LinearClassifier:
    """argmax of features @ weights + bias, on features that are not standardised.

    Attributes:
        weights: float32[D,C].
        bias: float32[C].
    """

    weights: np.ndarray
    bias: np.ndarray

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.bias)

    def predict(self, matrix: FeatureMatrix) -> np.ndarray:
        """The most likely class of each row, int[N]."""
        return np.concatenate(
            [np.argmax(rows @ self.weights + self.bias, axis=1) for rows, _ in matrix.chunks()]
        )

    def accuracy(self, matrix: FeatureMatrix) -> float:
        """Fraction of rows whose most likely class is their label."""
        return float((self.predict(matrix) == matrix.labels).mean())


@runtime_checkable
class Solver(Protocol):
    """Fits one classifier per value of the setting that is chosen on held-out images.

    Attributes:
        setting: Name of the setting: "l2" or "learning_rate".
        values: Values to try.
    """

    setting: str
    values: Sequence[float]

    def fit(
        self, matrix: FeatureMatrix, num_classes: int, values: Sequence[float]
    ) -> list[LinearClassifier]:
        """Fits a classifier for each of `values`."""


@gin.register("lbfgs")
class LBFGS:
    """Logistic regression on standardised features by scikit-learn's L-BFGS, in memory.

    Minimises mean cross-entropy + l2 / 2 * |weights|^2, from the largest l2 to the smallest; each
    fit starts from the previous solution.

    Args:
        l2: Regularisation strengths to try.
        tolerance: Stops when no entry of the gradient exceeds it.
        max_steps: Maximum number of iterations.

    Source: paper, section 4.1 (logistic regression with L-BFGS on CIFAR and STL-10).
    """

    setting = "l2"

    def __init__(
        self,
        l2: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
        tolerance: float = 3e-4,
        max_steps: int = 300,
    ):
        _check_positive("lbfgs.l2", l2)
        self.values = sorted(l2, reverse=True)
        self._tolerance = tolerance
        self._max_steps = max_steps

    def fit(
        self, matrix: FeatureMatrix, num_classes: int, values: Sequence[float]
    ) -> list[LinearClassifier]:
        """See `Solver`; `values` in descending order."""
        from sklearn.linear_model import LogisticRegression

        scaling = _Scaling.from_rows(matrix)
        features = matrix.array()
        features -= scaling.mean
        features *= scaling.factor
        regression = LogisticRegression(
            tol=self._tolerance, max_iter=self._max_steps, warm_start=True
        )
        classifiers = []
        for strength in values:
            regression.set_params(C=1 / (strength * len(matrix)))
            regression.fit(features, matrix.labels)
            classifiers.append(scaling.fold(*_weights(regression, num_classes)))
        return classifiers


@gin.register("sgd")
class SGD:
    """Softmax regression by SGD with momentum and a cosine schedule, streamed from the cache.

    For data sets that do not fit into memory. All learning rates are tried in the same pass.

    Args:
        learning_rates: Peak learning rates to try, for standardised features.
        num_steps: Number of steps.
        batch_size: Images per step.
        momentum: Momentum of the gradient.
        seed: Random seed of the order of the images.

    Source: paper, appendix (ImageNet: momentum 0.9, rates 30, 10, 3, ..., 1,000,000 steps, cosine);
    the default rates and number of steps are our choice.
    """

    setting = "learning_rate"

    def __init__(
        self,
        learning_rates: Sequence[float] = (1.0, 0.3, 0.1, 0.03),
        num_steps: int = 20_000,
        batch_size: int = 256,
        momentum: float = 0.9,
        seed: int = 0,
    ):
        _check_positive("sgd.learning_rates", learning_rates)
        self.values = list(learning_rates)
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._momentum = momentum
        self._seed = seed

    def fit(
        self, matrix: FeatureMatrix, num_classes: int, values: Sequence[float]
    ) -> list[LinearClassifier]:
        """See `Solver`."""
        scaling = _Scaling.from_rows(matrix)
        rates = np.asarray(values, "float32")[:, None, None]
        # Axis 0 enumerates the rates; the last row of the weights is the bias.
        weights = np.zeros((len(values), len(scaling.mean) + 1, num_classes), "float32")
        velocity = np.zeros_like(weights)
        for step, indices in enumerate(self._batches(len(matrix))):
            features = (matrix.take(indices) - scaling.mean) * scaling.factor
            features = np.pad(features, ((0, 0), (0, 1)), constant_values=1)
            gradient = _gradient(features, matrix.labels[indices], weights)
            velocity = self._momentum * velocity + gradient
            weights -= rates * np.cos(np.pi / 2 * step / self._num_steps) ** 2 * velocity
        return [scaling.fold(one[:-1], one[-1]) for one in weights]

    def _batches(self, size: int):
        """Yields int[B] `num_steps` times; every epoch has its own random order."""
        random, waiting = np.random.RandomState(self._seed), np.empty(0, int)
        batch_size = min(self._batch_size, size)
        for _ in range(self._num_steps):
            if len(waiting) < batch_size:
                waiting = np.concatenate([waiting, random.permutation(size)])
            batch, waiting = waiting[:batch_size], waiting[batch_size:]
            yield np.sort(batch)  # reads the file in ascending order


@dataclass(frozen=True)
class _Scaling:
    """Standardisation: (features - mean) * factor; constant features become 0."""

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def from_rows(cls, matrix: FeatureMatrix) -> "_Scaling":
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        for rows, _ in matrix.chunks():
            scaler.partial_fit(rows)
        return cls(scaler.mean_.astype("float32"), (1 / scaler.scale_).astype("float32"))

    def fold(self, weights: np.ndarray, bias: np.ndarray) -> LinearClassifier:
        """The classifier on standardised features as one on features that are not."""
        weights = self.factor[:, None] * weights
        return LinearClassifier(
            weights.astype("float32"), (bias - self.mean @ weights).astype("float32")
        )


def _weights(regression, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(weights [D,C], bias [C]) of a regression; classes without images are never predicted."""
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # scikit-learn stores the second class only
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
    weights = np.zeros((coefficients.shape[1], num_classes), "float32")
    bias = np.full(num_classes, -np.inf, "float32")
    weights[:, regression.classes_] = coefficients.T
    bias[regression.classes_] = intercepts
    return weights, bias


def _gradient(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Gradient of the mean cross-entropy: features [B,D], labels [B], weights [R,D,C]."""
    logits = features @ weights
    likelihoods = np.exp(logits - logits.max(axis=-1, keepdims=True))
    likelihoods /= likelihoods.sum(axis=-1, keepdims=True)
    likelihoods[:, np.arange(len(labels)), labels] -= 1
    return features.T @ likelihoods / len(labels)


def _check_positive(name: str, values: Sequence[float]) -> None:
    if not isinstance(values, (list, tuple)) or not values or min(values) <= 0:
        raise InputError(f"{name} must be a list of positive numbers. Received: {values!r}")
