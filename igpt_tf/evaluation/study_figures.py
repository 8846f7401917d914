"""Figures of a study: loss over compute, probe over loss, accuracy over depth, both objectives."""

import itertools
import os
from collections.abc import Callable, Sequence

import numpy as np

from igpt_tf.evaluation.plots import open_figure

_COLOURS = ("#1f5fa8", "#b5651d", "#6b8e23", "#8e4585", "#2a9d8f", "#8a8a8a")


def write_figures(workdir: str, report: dict) -> None:
    """Writes the figures that the finished cells allow.

    Args:
        workdir: Folder of the study.
        report: Content of study.json.
    """
    rows = report["cells"]
    for objective, fit in report["fits"].items():
        own = [row for row in rows if row["objective"] == objective]
        if not own:
            continue
        loss_over_compute(os.path.join(workdir, f"loss_{objective}.png"), own, fit)
        if all("probe_accuracy" in row for row in own):
            probe_over_loss(os.path.join(workdir, f"probe_{objective}.png"), own)
            accuracy_over_depth(os.path.join(workdir, f"depth_{objective}.png"), own)
    if len({row["objective"] for row in rows if "probe_accuracy" in row}) > 1:
        objectives_compared(os.path.join(workdir, "objectives.png"), rows)


def objective_title(objective: str) -> str:
    """The name of an objective in titles; an objective of the user's keeps its own."""
    return "masked (BERT)" if objective == "masked" else objective


def loss_over_compute(path: str, rows: Sequence[dict], fit: dict | None) -> None:
    """Held-out loss over training FLOPs, a line per size, with the fitted optimum per budget."""
    with open_figure(path) as (_, axes):
        _plot_sizes(axes, rows, "flops", lambda row: row["valid_nats_per_token"])
        if fit:
            budgets = np.geomspace(*_range([row["flops"] for row in rows]), 30)
            label = f"fit: optimum per budget (alpha {fit['alpha']:.2f}, beta {fit['beta']:.2f})"
            axes.plot(budgets, [_optimum(fit, c) for c in budgets], "k--", lw=1, label=label)
        axes.set_xscale("log")
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel("held-out nats per token")
        axes.set_title(f"Loss over compute, {objective_title(rows[0]['objective'])}")
        axes.legend(frameon=False, fontsize=8)


def probe_over_loss(path: str, rows: Sequence[dict]) -> None:
    """Probe accuracy of the best layer over the loss, as in the paper's figure 3."""
    with open_figure(path) as (_, axes):
        _plot_sizes(axes, rows, "valid_nats_per_token", _probe_percent)
        axes.axhline(
            100 * rows[0]["raw_pixels_accuracy"], ls=":", color="#8a8a8a", label="raw pixels"
        )
        axes.invert_xaxis()
        axes.set_xlabel("held-out nats per token (better to the right)")
        axes.set_ylabel(f"{rows[0]['probe_split']} accuracy of the best layer (%)")
        axes.set_title(f"Linear probe over loss, {objective_title(rows[0]['objective'])}")
        axes.legend(frameon=False, fontsize=8)


def accuracy_over_depth(path: str, rows: Sequence[dict]) -> None:
    """Probe accuracy of every layer, a line per size at its largest budget; paper, figure 2."""
    with open_figure(path) as (_, axes):
        for colour, (size, own) in zip(itertools.cycle(_COLOURS), _by_size(rows), strict=False):
            last = max(own, key=lambda row: (row["tokens"], -row["seed"]))
            layers = np.arange(len(last["probe_by_layer"])) / (len(last["probe_by_layer"]) - 1)
            axes.plot(
                layers,
                [100 * accuracy for accuracy in last["probe_by_layer"]],
                "o-",
                color=colour,
                label=f"{size}: {last['parameters']:,} weights, {last['num_layers']} layers",
            )
        axes.set_xlabel("depth (0: embeddings, 1: final norm)")
        axes.set_ylabel(f"{rows[0]['probe_split']} accuracy (%)")
        axes.set_title(f"Linear probe over depth, {objective_title(rows[0]['objective'])}")
        axes.legend(frameon=False, fontsize=8)


def objectives_compared(path: str, rows: Sequence[dict]) -> None:
    """Probe accuracy over training FLOPs for each objective; paper, figure 4."""
    with open_figure(path) as (_, axes):
        styles = {"autoregressive": "o-", "masked": "s--"}
        for objective in sorted({row["objective"] for row in rows}):
            probed = [r for r in rows if r["objective"] == objective and "probe_accuracy" in r]
            style, title = styles.get(objective, "d:"), objective_title(objective)
            _plot_sizes(axes, probed, "flops", _probe_percent, style, "{size}, " + title)
        axes.set_xscale("log")
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel("accuracy of the best layer (%)")
        axes.set_title("Linear probe by objective")
        axes.legend(frameon=False, fontsize=8)


def _plot_sizes(
    axes,
    rows: Sequence[dict],
    x: str,
    y: Callable[[dict], float],
    style: str = "o-",
    label: str = "{size}: {parameters:,} weights",
) -> None:
    """Plots `y` of the cells over their number `x`, a line per size and seed, a colour per size."""
    for colour, (_, of_size) in zip(itertools.cycle(_COLOURS), _by_size(rows), strict=False):
        for seed in sorted({row["seed"] for row in of_size}):
            own = [row for row in of_size if row["seed"] == seed]
            own.sort(key=lambda row: row[x])
            points = [row[x] for row in own], [y(row) for row in own]
            text = None if seed > of_size[0]["seed"] else label.format(**own[0])
            axes.plot(*points, style, color=colour, label=text)


def _probe_percent(row: dict) -> float:
    return 100 * row["probe_accuracy"]


def _by_size(rows: Sequence[dict]) -> list[tuple[str, list[dict]]]:
    sizes = dict.fromkeys(row["size"] for row in rows)
    return [(size, [row for row in rows if row["size"] == size]) for size in sizes]


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _optimum(fit: dict, flops: float) -> float:
    """The lowest loss that `fit` predicts for a budget of C = 6 N D FLOPs."""
    weights = np.geomspace(1e3, flops / 6e3, 400)
    tokens = flops / (6 * weights)
    return np.min(fit["E"] + fit["A"] / weights ** fit["alpha"] + fit["B"] / tokens ** fit["beta"])
