"""A study runs the cells of its grid, keeps finished ones and collects their numbers."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from igpt_tf.errors import InputError
from igpt_tf.evaluation import study
from igpt_tf.evaluation.study_figures import objective_title
from tests import programs

GRID = {
    "models": {"a": (1, 8, 1), "b": (2, 16, 2)},
    "tokens_per_parameter": [10, 5],
    "objectives": ["autoregressive", "masked"],
    "seeds": {"a": (0, 1)},
    "image_size": (8, 8),
    "vocabulary_size": 17,
    "batch_size": 16,
    "learning_rate_times_width": 0.24,
}


def test_the_grid_has_a_cell_per_size_budget_objective_and_seed():
    cells = study.grid_cells(**GRID)
    assert len(cells) == 2 * 2 * (2 + 1)
    assert cells[0].name == "autoregressive_a_5_seed0"
    assert {cell.learning_rate for cell in cells} == {0.03, 0.015}


def test_a_cell_trains_for_its_tokens_per_parameter():
    for cell in study.grid_cells(**GRID):
        # One step has 1,024 tokens.
        assert abs(cell.tokens - cell.tokens_per_parameter * cell.parameters) <= 512


def test_parameters_follow_the_formula_of_the_paper():
    cell = study.grid_cells(**GRID)[0]
    layers, width, length, colours = 1, 8, 64, 17
    expected = layers * (12 * width**2 + 2 * width) + length * width + 2 * colours * width
    assert cell.parameters == expected + 2 * width


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "the grid is empty"),
        ({"objectives": []}, "the grid is empty"),
        ({"batch_size": 10_000_000}, "a budget must be at least one step"),
        ({"tokens_per_parameter": [5, 5]}, "twice in the grid.*autoregressive_a_5_seed0"),
        ({"seeds": (0, 0)}, "twice in the grid"),
        ({"objectives": ["maskd"]}, "did you mean gin/objectives/masked.gin"),
        ({"seeds": {"c": (1,)}}, "there are a, b. Received: 'c'"),
        ({"models": {"a/b": (1, 8, 1)}}, "leave out the separators"),
    ],
)
def test_a_wrong_grid_and_a_budget_below_one_step_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        study.grid_cells(**{**GRID, **change})


@pytest.mark.parametrize("shard", ["2/2", "a/2", "1", "-1/2"])
def test_a_wrong_shard_is_refused(shard):
    with pytest.raises(InputError, match="I/N"):
        study._shard_slice(shard)


def test_shards_divide_the_cells_among_processes():
    cells = study.grid_cells(**GRID)
    parts = [cells[study._shard_slice(f"{i}/3")] for i in range(3)]
    assert sorted(c.name for part in parts for c in part) == sorted(c.name for c in cells)


def test_the_fit_recovers_the_coefficients_of_a_scaling_law():
    rows = [
        {
            "objective": "masked",
            "parameters": n,
            "tokens": d,
            "valid_nats_per_token": 2 + 30 / n**0.35 + 60 / d**0.3,
        }
        for n in (5e4, 1e5, 3e5)
        for d in (2e6, 8e6, 3e7)
    ]
    fit = study.fit_loss(rows, "masked")
    assert fit["rms"] < 1e-4
    assert fit["E"] == pytest.approx(2, abs=0.02)
    assert fit["alpha"] == pytest.approx(0.35, abs=0.02)
    assert study.fit_loss(rows, "autoregressive") is None


def test_figures_name_an_objective_of_the_users_own():
    assert objective_title("masked") == "masked (BERT)"
    assert objective_title("diffusion") == "diffusion"


def test_a_study_of_two_cells_pretrains_probes_and_writes_its_table(tmp_path):
    bindings = ["build_optimizer.warmup_steps=2", "intervals.evaluate_every=5"]
    parameters = {
        "gin_files": "['gin/base.gin', 'gin/datasets/digits.gin', 'gin/optimization/short.gin']",
        "bindings": repr(bindings),
        "image_size": "(8, 8)",
        "vocabulary_size": "17",
        "models": "{'a': (1, 8, 1)}",
        "tokens_per_parameter": "[5]",
        "batch_size": "16",
        "learning_rate_times_width": "0.05",
        "probe_bindings": "['linear_probe.num_train=200']",
    }
    text = "\n".join(f"study.{name} = {value}" for name, value in parameters.items())
    (tmp_path / "digits.gin").write_text(text)
    command = ["tools.study", f"--gin_file={tmp_path / 'digits.gin'}"]
    command += [f"--workdir={tmp_path / 'study'}"]

    assert "2 cells" in programs.done(*command, "--dry_run")
    assert not (tmp_path / "study").exists()

    programs.done(*command, "--jobs=2")
    report = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [row["objective"] for row in report["cells"]] == ["autoregressive", "masked"]
    for row in report["cells"]:
        assert 0 < row["valid_nats_per_token"] < 3
        assert len(row["probe_by_layer"]) == 2
    for name in ("study.csv", "loss_masked.png", "probe_masked.png", "objectives.png"):
        assert os.path.exists(tmp_path / "study" / name)

    assert "python -m igpt_tf.main" not in programs.done(*command)  # finished cells are kept

    text = (tmp_path / "digits.gin").read_text()
    for changed in (
        text.replace("0.05", "0.06"),
        text.replace("warmup_steps=2", "warmup_steps=3"),
        text.replace("(8, 8)", "(8, 9)"),
    ):
        (tmp_path / "digits.gin").write_text(changed)
        assert "belongs to another configuration" in programs.refused(*command)


def test_images_of_another_size_than_the_grids_are_refused(tmp_path):
    cell = study.grid_cells(**GRID)[0]
    folder = tmp_path / "cells" / cell.name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"parameters": cell.parameters + 16}))
    with pytest.raises(InputError, match="another size than study.image_size"):
        study._read_cell(cell, str(tmp_path))


@pytest.mark.parametrize(
    ("number", "code", "send"),
    [
        (signal.SIGTERM, 143, os.kill),  # to the study alone
        (signal.SIGINT, 130, os.killpg),  # as a terminal sends it, to the cell too
    ],
)
def test_a_signal_ends_the_cells_too_after_they_have_saved_their_state(
    tmp_path, number, code, send
):
    text = """
study.gin_files = ['gin/base.gin', 'gin/datasets/digits.gin', 'gin/optimization/short.gin']
study.bindings = ['intervals.checkpoint_every=5', 'build_optimizer.warmup_steps=2']
study.image_size = (8, 8)
study.vocabulary_size = 17
study.models = {'a': (1, 8, 1)}
study.tokens_per_parameter = [20000]
study.objectives = ['autoregressive']
study.batch_size = 16
study.learning_rate_times_width = 0.05
"""
    (tmp_path / "long.gin").write_text(text)
    command = [sys.executable, "-m", "tools.study", f"--gin_file={tmp_path / 'long.gin'}"]
    command += [f"--workdir={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    checkpoints = tmp_path / "cells" / "autoregressive_a_20000_seed0" / "checkpoints"
    while not (found := list(checkpoints.glob("ckpt-*.index"))):
        assert process.poll() is None
        time.sleep(0.2)
    [cell] = psutil.Process(process.pid).children()
    send(process.pid, number)
    assert process.wait(timeout=60) == code
    assert not cell.is_running()
    assert sorted(checkpoints.glob("ckpt-*.index")) != found  # the state of its last step


def test_a_cell_that_a_signal_has_ended_is_named_with_the_fix(tmp_path, monkeypatch):
    (tmp_path / "stopped_cell.py").write_text("raise SystemExit(143)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        study._Programs() as programs,
        pytest.raises(InputError, match="cell a_5 was ended by a signal.*start the same command"),
    ):
        programs.call("a_5", "stopped_cell")
