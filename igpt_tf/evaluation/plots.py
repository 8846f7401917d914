"""Plots of results as PNG files."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np

from igpt_tf import files
from igpt_tf.evaluation.splits import SPLIT_TITLES
from igpt_tf.image_grid import in_font
from igpt_tf.savedmodel import shipped

_MODEL_COLOUR = "#1f5fa8"
_OTHER_COLOURS = ("#b5651d", "#6b8e23", "#8a8a8a", "#8e4585", "#2a9d8f")
_DOTS_PER_INCH = 130
_MAX_NAMED_CLASSES = 30  # for which names and numbers fit into a confusion matrix


def run_name(report: dict) -> str:
    """Name of the model of a report, for titles: "runs/digits, step 1,400" or "digits, step 1,400".

    Args:
        report: Has "saved_model", a path, and may have "step".
    """
    path = os.path.normpath(report["saved_model"])
    if os.path.basename(os.path.dirname(path)) == "export":
        path = os.path.dirname(os.path.dirname(path)) or path
    path = shipped.name_of(path) or path
    return path + (f", step {report['step']:,}" if report.get("step") else "")


def accuracy_by_layer(path: str, report: dict) -> None:
    """Plots the report of `linear_probe`: accuracy over layers, baselines as lines."""
    split = report["measured_on"]
    measure, size = f"{split}_accuracy", report["num_images"][split]
    rows, best = report["layers"], report["best_layer"]
    with open_figure(path, (7.6, 4.2)) as (_, axes):
        layers = [row["layer"] for row in rows]
        percents = [100 * row[measure] for row in rows]
        label = "pretrained network, with its 95 % interval"
        axes.plot(layers, percents, "o-", color=_MODEL_COLOUR, lw=2, label=label, zorder=3)
        bounds = 100 * np.transpose([row[f"{split}_interval"] for row in rows])
        axes.fill_between(layers, *bounds, color=_MODEL_COLOUR, alpha=0.15, lw=0)
        label = f"best held-out layer: {100 * best[measure]:.1f} %"
        axes.plot(
            best["layer"],
            100 * best[measure],
            "o",
            ms=12,
            mfc="none",
            mec=_MODEL_COLOUR,
            label=label,
        )
        for colour, (name, row) in zip(_OTHER_COLOURS, report["baselines"].items(), strict=False):
            title = name.replace("_", " ")
            if len(row["layers"]) > 1:
                percents = [100 * one[measure] for one in row["layers"]]
                axes.plot(range(len(percents)), percents, ".--", color=colour, label=title)
            else:
                axes.axhline(100 * row[measure], ls=":", lw=2, color=colour, label=title)
        axes.set_xticks(layers)
        axes.set_xlabel("layer (0: embeddings, last: final norm)")
        axes.set_ylabel(f"{SPLIT_TITLES[split]} accuracy (%), {size:,} images")
        _set_title(axes, report, f"linear probe on {report['data']['name']}")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def accuracy_by_labels(path: str, report: dict) -> None:
    """Plots the report of `low_data`: accuracy over labels per class, deviations as bars."""
    split = report["measured_on"]
    with open_figure(path) as (_, axes):
        for colour, name in (
            (_MODEL_COLOUR, "pretrained_network"),
            (_OTHER_COLOURS[0], "raw_pixels"),
        ):
            rows = report[name]
            axes.errorbar(
                [row["labels_per_class"] for row in rows],
                [100 * row[f"{split}_accuracy"] for row in rows],
                [100 * row[f"{split}_deviation"] for row in rows],
                fmt="o-",
                capsize=4,
                color=colour,
                label=name.replace("_", " "),
            )
        ticks = [row["labels_per_class"] for row in report["raw_pixels"]]
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("labels per class")
        size = report["num_images"][split]
        axes.set_ylabel(f"{SPLIT_TITLES[split]} accuracy (%), {size:,} images")
        subsets = f"mean and standard deviation of {report['num_subsets']} subsets"
        _set_title(axes, report, f"few labels of {report['data']['name']}, {subsets}")
        axes.legend(frameon=False)


def confusion(path: str, counts: np.ndarray, class_names: Sequence[str], title: str) -> None:
    """Plots a confusion matrix int[C,C] of labels (rows) and predictions in percent per row."""
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(12, 3.2 + 0.42 * len(counts))
    with open_figure(path, (size + 0.6, size)) as (figure, axes):
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
        figure.colorbar(image, ax=axes, label="share of the images of a label (%)", fraction=0.046)
        if len(counts) <= _MAX_NAMED_CLASSES:
            names = [_plain(name) for name in class_names]
            axes.set_xticks(range(len(counts)), names, rotation=45, ha="right")
            axes.set_yticks(range(len(counts)), names)
            for (row, column), share in np.ndenumerate(shares):
                if counts[row, column]:
                    colour = "white" if share > 50 else "black"
                    axes.text(
                        column, row, f"{share:.0f}", color=colour, ha="center", va="center", size=8
                    )
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        axes.set_title(_plain(title), fontsize=10)


def surprise_map(path: str, surprise: np.ndarray, title: str) -> None:
    """Plots the mean surprise float[H,W] of each pixel in nats."""
    with open_figure(path, (5.2, 4.4)) as (figure, axes):
        image = axes.imshow(surprise, cmap="magma", interpolation="nearest")
        figure.colorbar(image, ax=axes, label="surprise (nats)", fraction=0.046)
        axes.set_xlabel("column")
        axes.set_ylabel("row")
        axes.set_title(_plain(title), fontsize=9, wrap=True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)


def _set_title(axes, report: dict, what: str) -> None:
    axes.set_title(f"{_plain(run_name(report))}\n{_plain(what)}", fontsize=10)


def _plain(text: str) -> str:
    """Text without formulas, which dollar signs would start, in characters that the font has."""
    return in_font(text).replace("$", r"\$")


@contextlib.contextmanager
def open_figure(path: str, size: tuple[float, float] = (6.4, 4.2)) -> Iterator[tuple]:
    """(figure, axes) without frame and with a light grid, written to `path` at the end."""
    # Not pyplot, which keeps global state and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    yield figure, axes
    if axes.images:
        axes.grid(False)
    with files.atomic_write(path) as file:
        # "tight": constrained layout cuts the axes' titles off beside long names of classes.
        figure.savefig(file, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight")
