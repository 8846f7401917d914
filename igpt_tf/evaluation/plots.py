"""Pictures of results, for people who would rather look than read."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np

_OWN = "#1f5fa8"
_OTHERS = ("#b5651d", "#6b8e23", "#8a8a8a", "#8e4585")
_DOTS_PER_INCH = 130
_MOST_NAMED = 30  # classes whose names and numbers still fit


def accuracy_by_layer(path: str, report: dict) -> None:
    """The report of `linear_probe` as a picture: a curve over layers, baselines as lines."""
    measure = f"{report['measured_on']}_accuracy"
    name = _part_name(report["measured_on"])
    rows, best = report["layers"], report["best_layer"]
    with _figure(path, (7.6, 4.2)) as (_, axes):
        layers = [row["layer"] for row in rows]
        shares = [100 * row[measure] for row in rows]
        axes.plot(layers, shares, "o-", color=_OWN, lw=2, label="pretrained network", zorder=3)
        label = f"best held-out layer: {100 * best[measure]:.1f} %"
        axes.plot(best["layer"], 100 * best[measure], "o", ms=12, mfc="none", mec=_OWN, label=label)
        for colour, (title, row) in zip(_OTHERS, report["baselines"].items(), strict=False):
            title = title.replace("_", " ")
            if len(row["layers"]) > 1:
                values = [100 * one[measure] for one in row["layers"]]
                axes.plot(range(len(values)), values, ".--", color=colour, label=title)
            else:
                axes.axhline(100 * row[measure], ls=":", lw=2, color=colour, label=title)
        axes.set_xticks(layers)
        axes.set_xlabel("layer (0: embeddings, last: final norm)")
        axes.set_ylabel(f"{name} accuracy (%)")
        axes.set_title(f"Linear probe, {report['data']['name']}")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def low_data(path: str, report: dict) -> None:
    """The report of `low_data` as a picture: accuracy over labels a class, spread as bars."""
    part = report["measured_on"]
    with _figure(path) as (_, axes):
        for colour, name in ((_OWN, "pretrained_network"), (_OTHERS[0], "raw_pixels")):
            rows = report[name]
            axes.errorbar(
                [row["labels_per_class"] for row in rows],
                [100 * row[f"{part}_accuracy"] for row in rows],
                [100 * row[f"{part}_deviation"] for row in rows],
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
        axes.set_ylabel(f"{_part_name(part)} accuracy (%)")
        axes.set_title(
            f"Few labels, {report['data']['name']} "
            f"(mean and deviation of {report['num_subsets']} subsets)"
        )
        axes.legend(frameon=False)


def confusion(path: str, counts: np.ndarray, class_names: Sequence[str], title: str) -> None:
    """Which labels (rows) were taken for which (columns), int[C,C], in percent of each row."""
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(12, 3.2 + 0.42 * len(counts))
    with _figure(path, (size + 0.6, size)) as (figure, axes):
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
        figure.colorbar(image, ax=axes, label="share of the label's images (%)", fraction=0.046)
        if len(counts) <= _MOST_NAMED:
            axes.set_xticks(range(len(counts)), class_names, rotation=45, ha="right")
            axes.set_yticks(range(len(counts)), class_names)
            for (row, column), share in np.ndenumerate(shares):
                if counts[row, column]:
                    colour = "white" if share > 50 else "black"
                    axes.text(
                        column, row, f"{share:.0f}", color=colour, ha="center", va="center", size=8
                    )
        axes.set_xlabel("decided")
        axes.set_ylabel("label")
        axes.set_title(title, fontsize=10)


def surprise(path: str, surprise: np.ndarray, title: str) -> None:
    """The mean surprise float[H,W] at each pixel, in nats."""
    with _figure(path, (5.2, 4.4)) as (figure, axes):
        image = axes.imshow(surprise, cmap="magma", interpolation="nearest")
        figure.colorbar(image, ax=axes, label="surprise (nats)", fraction=0.046)
        axes.set_xlabel("column")
        axes.set_ylabel("row")
        axes.set_title(title, fontsize=10)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)


def _part_name(part: str) -> str:
    return {"valid": "held-out"}.get(part, part)


@contextlib.contextmanager
def _figure(path: str, size: tuple[float, float] = (6.4, 4.2)) -> Iterator[tuple]:
    """(figure, axes) without frame and with a light grid, written to `path` at the end."""
    # Not pyplot: nothing global, and no display is looked for.
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
    figure.savefig(path + ".part", format="png", dpi=_DOTS_PER_INCH)
    os.replace(path + ".part", path)
