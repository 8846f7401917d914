"""Linear classifiers on features: L-BFGS in memory, SGD in a stream."""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import gin
import numpy as np
from tqdm import tqdm

from igpt_tf import runtime
from igpt_tf.errors import InputError
from igpt_tf.evaluation.features import Rows

_MOST_WORKERS = 4  # each holds one layer's features in memory


@dataclass(frozen=True)
class Classifier:
    """argmax of features @ weights + bias; the standardisation is already in them.

    Attributes:
        weights: float32[D,C].
        bias: float32[C].
    """

    weights: np.ndarray
    bias: np.ndarray

    def accuracy(self, rows: Rows) -> float:
        """The share of images whose most likely class is their label."""
        hits = [
            np.argmax(features @ self.weights + self.bias, axis=1) == labels
            for features, labels in rows.chunks()
        ]
        return float(np.concatenate(hits).mean())


class Solver(Protocol):
    """Fits classifiers, one for each value of the one setting that held-out data choose.

    Attributes:
        setting: What the values are: "l2" or "learning_rate".
        values: The values to try.
    """

    setting: str
    values: Sequence[float]

    def fit(self, rows: Rows, num_classes: int, values: Sequence[float]) -> list[Classifier]:
        """A classifier for each of `values`."""


@gin.register("lbfgs")
class LBFGS:
    """Logistic regression on standardised features, scikit-learn's L-BFGS.

    Minimises mean cross-entropy + l2 / 2 * |weights|^2, from the strongest l2 to the weakest,
    each from the solution before.

    Args:
        l2: Strengths to try.
        tolerance: Stops where no entry of the gradient is larger.
        max_steps: Stops at the latest here.

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

    def fit(self, rows: Rows, num_classes: int, values: Sequence[float]) -> list[Classifier]:
        """See `Solver`; `values` from strong to weak."""
        # Imported here: scikit-learn takes a second, and SGD does without.
        from sklearn.linear_model import LogisticRegression

        scaling = _Scaling.of(rows)
        features = rows.array()
        features -= scaling.mean
        features *= scaling.factor
        regression = LogisticRegression(
            tol=self._tolerance, max_iter=self._max_steps, warm_start=True
        )
        classifiers = []
        for strength in values:
            regression.set_params(C=1 / (strength * len(rows)))
            regression.fit(features, rows.labels)
            classifiers.append(scaling.folded(*_weights(regression, num_classes)))
        return classifiers


@gin.register("sgd")
class SGD:
    """Softmax regression by momentum SGD with a cosine, reading a batch at a time.

    For sets too large for memory. All learning rates are tried in the same pass.

    Args:
        learning_rates: Rates to try, for standardised features.
        num_steps: Steps of each.
        batch_size: Images a step.
        momentum: Of the gradient.
        seed: Fixes the order of the images.

    Source: paper, appendix (ImageNet: momentum 0.9, rates 30, 10, 3, ..., 1,000,000 steps, cosine);
    the default rates and length are ours.
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

    def fit(self, rows: Rows, num_classes: int, values: Sequence[float]) -> list[Classifier]:
        """See `Solver`."""
        scaling = _Scaling.of(rows)
        rates = np.asarray(values, "float32")[:, None, None]
        # Axis 0 holds the rates; the last row of the weights is the bias.
        weights = np.zeros((len(values), len(scaling.mean) + 1, num_classes), "float32")
        velocity = np.zeros_like(weights)
        for step, indices in enumerate(self._batches(len(rows))):
            features = (rows.take(indices) - scaling.mean) * scaling.factor
            features = np.pad(features, ((0, 0), (0, 1)), constant_values=1)
            gradient = _gradient(features, rows.labels[indices], weights)
            velocity = self._momentum * velocity + gradient
            weights -= rates * np.cos(np.pi / 2 * step / self._num_steps) ** 2 * velocity
        return [scaling.folded(one[:-1], one[-1]) for one in weights]

    def _batches(self, size: int):
        """Yields int[B] `num_steps` times: the images of every epoch in an order of its own."""
        random, waiting = np.random.RandomState(self._seed), np.empty(0, int)
        batch_size = min(self._batch_size, size)
        for _ in range(self._num_steps):
            if len(waiting) < batch_size:
                waiting = np.concatenate([waiting, random.permutation(size)])
            batch, waiting = waiting[:batch_size], waiting[batch_size:]
            yield np.sort(batch)  # neighbours lie together in the file


def fit_each(fit: Callable, items: Sequence, title: str) -> list:
    """`[fit(item) for item in items]`, several at a time, with a progress bar."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    workers = min(_MOST_WORKERS, runtime.num_cores())
    # [C,N] @ [N,D] is too small to share: two threads of BLAS take 10 times as long as one.
    with threadpool_limits(1), warnings.catch_warnings(), ThreadPoolExecutor(workers) as threads:
        # Ending at the last step is early stopping, not a fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return list(tqdm(threads.map(fit, items), total=len(items), unit="layer", desc=title))


@dataclass(frozen=True)
class _Scaling:
    """Standardisation: (features - mean) * factor. What never varies is ignored (factor 0)."""

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, rows: Rows) -> "_Scaling":
        size = total = squares = 0
        for chunk, _ in rows.chunks():
            chunk = chunk.astype("float64")
            size += len(chunk)
            total = total + chunk.sum(axis=0)
            squares = squares + (chunk**2).sum(axis=0)
        mean = total / size
        variance = np.maximum(squares / size - mean**2, 0)
        varies = variance > 1e-12 + 1e-10 * mean**2
        factor = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
        return cls(mean.astype("float32"), factor.astype("float32"))

    def folded(self, weights: np.ndarray, bias: np.ndarray) -> Classifier:
        """The same classifier for features that are not standardised."""
        weights = self.factor[:, None] * weights
        return Classifier(weights.astype("float32"), (bias - self.mean @ weights).astype("float32"))


def _weights(regression, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(weights [D,C], bias [C]) of a fitted regression; classes it never saw are never chosen."""
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # scikit-learn keeps the second class's row only
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
        raise InputError(f"{name} is a list of positive numbers. Received: {values!r}")
