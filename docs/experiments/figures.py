"""Draws the figures of docs/results.md from the results of train_on_gpu.py.

python docs/experiments/figures.py
"""

import json
import pathlib

import numpy as np

from igpt_tf.evaluation.plots import open_figure

HERE = pathlib.Path(__file__).resolve().parent
IMAGES = HERE.parent / "images"
BLUE, BROWN, GREEN, GREY = "#1f5fa8", "#b5651d", "#6b8e23", "#8a8a8a"
RAW_PIXELS = 41.8  # docs/results.md


def depth(path, small: dict, large: dict) -> None:
    """Probe accuracy over layers of both objectives."""
    with open_figure(str(path), (7.6, 4.2)) as (_, axes):
        for results, key, style, colour, label in (
            (small, "probe of autoregressive", "o-", BLUE, "autoregressive, 16x16"),
            (large, "probe of autoregressive", "o--", BLUE, "autoregressive, 32x32"),
            (small, "probe of masked", "s-", BROWN, "masked (BERT), 16x16, 5 masks vote"),
            (small, "probe of masked, nothing hidden", "s--", BROWN, "the same, nothing hidden"),
        ):
            rows = results[key]["rows"]
            percents = [100 * row["test_accuracy"] for row in rows]
            axes.plot(range(len(rows)), percents, style, color=colour, label=label)
        axes.axhline(RAW_PIXELS, ls=":", lw=2, color=GREY, label="raw pixels, 16x16")
        axes.set_xlabel("layer (8: final norm)")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title("CIFAR-10: linear probe of each layer")
        axes.legend(frameon=False, fontsize=8)


def labels(path, small: dict) -> None:
    """Accuracy over the number of labels per class: probe and Wide ResNet."""
    counts = (4, 25, 400)
    best = max(small["probe of autoregressive"]["rows"], key=lambda row: row["valid_accuracy"])
    probes = [
        [r["test_accuracy"] for r in small["few labels"]["rows"] if r["labels_per_class"] == k]
        for k in counts
    ]
    probes.append([best["test_accuracy"]])
    networks = [small[f"wide_resnet_{k}"]["test_accuracies"] for k in (*counts, "all")]
    with open_figure(str(path), (7.6, 4.2)) as (_, axes):
        for rows, style, colour, label in (
            (probes, "o-", BLUE, "linear probe of layer 6, autoregressive"),
            (networks, "^-", GREEN, "Wide ResNet 16-4, supervised"),
        ):
            means = [100 * np.mean(row) for row in rows]
            spread = [100 * np.std(row) for row in rows]
            axes.errorbar((*counts, 4500), means, spread, fmt=style, color=colour, label=label)
        axes.plot(4500, 100 * small["joint"]["test_accuracy"], "D", color=BROWN, label="fine-tuned")
        axes.set_xscale("log")
        axes.set_xticks((*counts, 4500), (*map(str, counts), "all"))
        axes.minorticks_off()
        axes.set_xlabel("labels per class")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title("CIFAR-10 at 16x16: few labels")
        axes.legend(frameon=False, fontsize=8)


def main():
    """Writes both figures into docs/images."""
    small, large = (json.loads((HERE / f"cifar10_{size}.json").read_text()) for size in (16, 32))
    depth(IMAGES / "cifar10_depth.png", small, large)
    labels(IMAGES / "cifar10_labels.png", small)


if __name__ == "__main__":
    main()
