"""Linear probes of feature arrays, as `igpt_tf.evaluation` fits them, with scikit-learn alone.

Features are float32[N,D]; of a masked model, held-out and test images have one array per mask, and
the majority of the masks decides.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression

L2 = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def probe_layer(path: str, layer: int) -> dict:
    """Chooses L2 on the held-out images, fits on training and held-out images, scores the test.

    Args:
        path: File without `_train.npy`, `_valid.npy`, `_test.npy`: float16[masks,N,L+1,D], and
            `_labels.npz`.
        layer: Index of the layer.

    Returns:
        {"layer", "l2", "valid_accuracy", "test_accuracy", "test_accuracy_one_mask"}.
    """
    views, labels = _load(path, layer)
    train = views["train"][0]
    model, scores = _regression(), []
    for l2 in L2:
        model.set_params(C=1 / (l2 * len(train)))
        model.fit(train, labels["train"])
        scores.append(_accuracy(model, views["valid"], labels["valid"])[0])
    l2 = L2[int(np.argmax(scores))]
    both = np.concatenate([train, views["valid"][0]])
    model = _regression().set_params(C=1 / (l2 * len(both)))
    model.fit(both, np.concatenate([labels["train"], labels["valid"]]))
    voted, single = _accuracy(model, views["test"], labels["test"])
    return {
        "layer": layer,
        "l2": l2,
        "valid_accuracy": max(scores),
        "test_accuracy": voted,
        "test_accuracy_one_mask": single,
    }


def probe_few_labels(path: str, layer: int, labels_per_class: int, subset: int) -> dict:
    """As `probe_layer`, from a random subset with equally many labels per class, without refit."""
    views, labels = _load(path, layer)
    rng = np.random.default_rng((labels_per_class, subset))
    chosen = np.concatenate(
        [
            rng.permutation(np.flatnonzero(labels["train"] == c))[:labels_per_class]
            for c in np.unique(labels["train"])
        ]
    )
    model, best = _regression(), (0, 0)
    for l2 in L2:
        model.set_params(C=1 / (l2 * len(chosen)))
        model.fit(views["train"][0][chosen], labels["train"][chosen])
        accuracies = [_accuracy(model, views[s], labels[s])[0] for s in ("valid", "test")]
        best = max(best, tuple(accuracies))
    return {"labels_per_class": labels_per_class, "layer": layer, "test_accuracy": best[1]}


def _load(path, layer):
    views = {
        split: [
            view[:, layer].astype("float32")
            for view in np.load(f"{path}_{split}.npy", mmap_mode="r")
        ]
        for split in ("train", "valid", "test")
    }
    mean, deviation = views["train"][0].mean(0), views["train"][0].std(0)
    for arrays in views.values():
        for array in arrays:
            array -= mean
            array /= np.maximum(deviation, 1e-6)
    return views, dict(np.load(f"{path}_labels.npz"))


def _regression():
    return LogisticRegression(tol=3e-4, max_iter=300, warm_start=True)


def _accuracy(model, views, labels) -> tuple[float, float]:
    """(accuracy of the majority, mean accuracy of one view)."""
    probabilities = np.stack([model.predict_proba(view) for view in views])
    single = np.mean([model.classes_[p.argmax(1)] == labels for p in probabilities])
    votes = np.eye(probabilities.shape[2])[probabilities.argmax(2)].sum(0)
    ranks = votes + 0.5 * probabilities.mean(0)
    return float(np.mean(model.classes_[ranks.argmax(1)] == labels)), float(single)
