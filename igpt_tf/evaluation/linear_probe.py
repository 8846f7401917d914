"""The linear probe: how much a linear classifier reads from each layer."""

import os
from collections.abc import Sequence

from igpt_tf.data import Source
from igpt_tf.errors import InputError
from igpt_tf.evaluation import encoders
from igpt_tf.evaluation.features import Features, Rows, cached_features
from igpt_tf.evaluation.probe import Solver, fit_each
from igpt_tf.evaluation.splits import Splits, labelled, source_of
from igpt_tf.savedmodel.load import SavedModel


def linear_probe(
    model: SavedModel,
    *,
    workdir: str,
    source: Source | None,
    solver: Solver,
    num_layers: int = 1,
    num_train: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> dict:
    """Probes every layer of a model and of what it has to beat, on the same split.

    The solver's setting and the best layer are chosen on the held-out part. Where there is a test
    part, classifiers are then fitted again on training and held-out images together, and the test
    part measures them; where there is none, the held-out accuracy is what remains to report.

    Args:
        model: The model.
        workdir: Keeps the features.
        source: Labelled images; None for those the model was trained on.
        solver: Fits the classifiers.
        num_layers: More than 1: also probe so many layers side by side around the best.
        num_train: Use so many random training images, all if None; the second fit adds the
            held-out part to them.
        batch_size: Images at a time through the network.
        seed: Of the choice of training images and of the random network.

    Returns:
        The report, JSON-able: "measured_on", "layers", "best_layer", "concatenated", "baselines".

    Raises:
        InputError: The data set does not fit the model, lacks labels or holds one class only.

    Source: paper, sections 2.4 and 4.2; appendix on iGPT-XL (layers side by side).
    """
    contestants = [
        encoders.pretrained(model),
        encoders.raw_pixels(),
        encoders.palette_counts(model),
        encoders.random_network(model, seed),
    ]
    source = source_of(model, source)
    splits = labelled(source, num_train, seed)
    _check_num_layers(num_layers, model)
    cache = os.path.join(workdir, "features")
    tables = {
        encoder.title: features_of(encoder, splits, cache, batch_size=batch_size)
        for encoder in contestants
    }
    results = {
        title: probe_layers(parts, splits.num_classes, solver, title=title)
        for title, parts in tables.items()
    }
    own = contestants[0].title
    layers = results.pop(own)
    best = best_of(layers)
    return {
        "saved_model": model.path,
        "step": model.metadata.get("step"),
        "data": source.description,
        "num_images": splits.sizes,
        "num_classes": splits.num_classes,
        "measured_on": splits.measured_on,
        "solver": solver.setting,
        "layers": layers,
        "best_layer": best,
        "concatenated": _concatenated(tables[own], splits, solver, best["layer"], num_layers),
        "baselines": {
            title.replace(" ", "_"): {**best_of(rows), "layers": rows}
            for title, rows in results.items()
        },
    }


def features_of(
    encoder: encoders.Encoder, splits: Splits, cache: str, *, batch_size: int
) -> dict[str, Features]:
    """{"train": Features, "valid": ..., and "test" if there is one}, from the cache if possible."""
    return {
        name: cached_features(
            encoder, part, cache, batch_size=batch_size, title=f"{encoder.title}, {name}"
        )
        for name, part in splits
    }


def probe_layers(
    parts: dict[str, Features], num_classes: int, solver: Solver, *, title: str
) -> list[dict]:
    """Probes each layer by itself; the rows of the report, see `probe_one`."""

    def one(layer):
        return {"layer": layer, **probe_one(parts, [layer], num_classes, solver)}

    layers = range(parts["train"].num_layers)
    return fit_each(one, layers, title)


def probe_one(
    parts: dict[str, Features], layers: Sequence[int], num_classes: int, solver: Solver
) -> dict:
    """Probes `layers` side by side.

    Returns:
        {"valid_accuracy", the solver's setting as chosen on the held-out part, and "test_accuracy"
        after the second fit if there is a test part}.
    """
    train, valid = (Rows([parts[name]], layers) for name in ("train", "valid"))
    accuracies = [one.accuracy(valid) for one in solver.fit(train, num_classes, solver.values)]
    best = max(range(len(accuracies)), key=accuracies.__getitem__)
    chosen = solver.values[best]
    row = {"valid_accuracy": accuracies[best], solver.setting: chosen}
    if "test" in parts:
        both = Rows([parts["train"], parts["valid"]], layers)
        [final] = solver.fit(both, num_classes, [chosen])
        row["test_accuracy"] = final.accuracy(Rows([parts["test"]], layers))
    return row


def best_of(rows: list[dict]) -> dict:
    """The row with the best held-out accuracy, the first on a tie. Test accuracies have no say."""
    return max(rows, key=lambda row: row["valid_accuracy"])


def around(best: int, num_layers: int, available: int) -> list[int]:
    """`num_layers` neighbouring layers with `best` in the middle, moved inwards at the ends."""
    first = min(max(best - num_layers // 2, 0), available - num_layers)
    return list(range(first, first + num_layers))


def _concatenated(
    parts: dict[str, Features], splits: Splits, solver: Solver, best: int, num_layers: int
) -> dict | None:
    if num_layers == 1:
        return None
    layers = around(best, num_layers, parts["train"].num_layers)
    [row] = fit_each(
        lambda layers: probe_one(parts, layers, splits.num_classes, solver),
        [layers],
        f"{num_layers} layers side by side",
    )
    return {"layers": layers, **row}


def _check_num_layers(num_layers: int, model: SavedModel) -> None:
    available = model.metadata["model"]["num_layers"] + 1
    if not 1 <= num_layers <= available:
        raise InputError(
            f"the number of layers side by side lies between 1 and the model's {available}. "
            f"Received: layers={num_layers}"
        )
