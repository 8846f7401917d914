"""Supervised baseline: a Wide ResNet from all labels and from few."""

import json

import numpy as np
import pytest

from igpt_tf.data import digits
from igpt_tf.errors import InputError
from igpt_tf.evaluation.supervised_baseline import format_report, supervised_baseline, wide_resnet


def test_parameter_counts_are_those_of_the_paper():
    # Zagoruyko and Komodakis 2016, table 4: WRN-40-1 0.6 M, WRN-16-4 2.8 M, at 10 classes.
    for (depth, width), millions in {(40, 1): 0.6, (16, 4): 2.8}.items():
        network = wide_resnet(image_size=(32, 32), num_classes=10, depth=depth, width=width)
        assert network.count_params() / 1e6 == pytest.approx(millions, abs=0.06)
    logits = wide_resnet(image_size=(8, 8), num_classes=3, depth=10, width=1)(
        np.zeros((2, 8, 8, 3), "uint8")
    )
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("sizes", [{"depth": 12}, {"depth": 4}, {"width": 0}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(InputError, match="10, 16, 22"):
        wide_resnet(image_size=(8, 8), num_classes=2, **sizes)


def test_two_steps_on_the_digits(tmp_path):
    import gin

    gin.parse_config("wide_resnet.depth = 10\nwide_resnet.width = 1")
    report = supervised_baseline(
        workdir=str(tmp_path),
        source=digits(),
        labels_per_class=[2],
        num_subsets=2,
        num_steps=2,
        evaluate_every=1,
        batch_size=32,
    )
    assert json.loads((tmp_path / "supervised_baseline.json").read_text()) == report
    assert report["measured_on"] == "valid" and report["num_parameters"] < 100_000
    [row] = report["few_labels"]
    assert row["labels_per_class"] == 2 and len(row["valid_accuracies"]) == 2
    low, high = report["all_labels"]["valid_interval"]
    assert low <= report["all_labels"]["valid_accuracy"] <= high
    lines = format_report(report).splitlines()
    assert "held-out (n=360)" in lines[0] and lines[2].startswith("2 ") and "all" in lines[3]


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(InputError, match="supervised_baseline.source"):
        supervised_baseline(workdir=str(tmp_path))
    with pytest.raises(InputError, match="evaluate_every must divide"):
        supervised_baseline(workdir=str(tmp_path), source=digits(), num_steps=5, evaluate_every=2)
    with pytest.raises(InputError, match="labels_per_class=400"):
        supervised_baseline(workdir=str(tmp_path), source=digits(), labels_per_class=[400])
