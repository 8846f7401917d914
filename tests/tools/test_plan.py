"""Tests of tools.plan: a run file suffices, its data need not exist."""

import importlib.util
import json

import pytest

from igpt_tf.formatting import duration
from tests import programs


def _run(*arguments):
    return programs.run("tools.plan", *arguments)


def test_the_papers_largest_run_is_planned_on_shards_without_its_data(tmp_path):
    ended = _run(
        "--gin_file=gin/runs/web64_xl_ar.gin",
        "--memory_gb=80,40,16",
        "--shards=8,16,64",
        "--flops=312e12",
        f"--workdir={tmp_path}",
    )
    assert ended.returncode == 0, ended.stderr
    for text in (
        "6,810,875,904 parameters",
        "8 x 80 GB",
        "64 x 16 GB",
        "gathered weights",
        "369 days",  # at 40 % of 8 x 312e12, with remat
        "Warning: the run computes in float32",
    ):
        assert text in ended.stdout, text
    plans = json.loads((tmp_path / "plan.json").read_text())
    assert [plan["devices"]["count"] for plan in plans] == [8, 16, 64]


def test_this_machine_is_measured_without_flops():
    ended = _run("--gin_file=gin/runs/digits_tiny_ar.gin", "--memory_gb=1", "--replicas=2")
    assert ended.returncode == 0, ended.stderr
    assert "203,520 parameters, float32, on 2 x 1 GB" in ended.stdout


def test_an_image_size_that_only_absent_data_know_is_asked_for(tmp_path):
    run = tmp_path / "own.gin"
    run.write_text(
        'include "gin/runs/digits_tiny_ar.gin"\n'
        f"train.source = @tfrecords()\ntfrecords.directory = '{tmp_path}'\n"
    )
    rejected = _run(f"--gin_file={run}", "--memory_gb=1", "--flops=1e12")
    assert rejected.returncode == 2 and "pass --image_size" in rejected.stderr
    assert rejected.stderr.count("error: ") == 1 and "Traceback" not in rejected.stderr
    given = _run(f"--gin_file={run}", "--memory_gb=1", "--flops=1e12", "--image_size=8")
    assert given.returncode == 0 and "203,520 parameters" in given.stdout


@pytest.mark.parametrize(
    "gin_file, flags, message",
    [
        ("gin/models/s.gin", ["--memory_gb=1"], "pass a run file"),
        (
            "gin/runs/digits_tiny_ar.gin",
            ["--memory_gb=80,40", "--shards=8"],
            "one number per --memory_gb",
        ),
        ("gin/runs/digits_tiny_ar.gin", ["--memory_gb=80GB"], "takes numbers"),
        ("gin/runs/digits_tiny_ar.gin", ["--memory_gb=80", "--shards=1.5"], "takes whole numbers"),
        ("gin/runs/digits_tiny_ar.gin", ["--compile_for=h1000"], "unknown target"),
        ("gin/runs/digits_tiny_ar.gin", ["--compile_for=h100", "--replicas=2"], "one device"),
    ],
)
def test_wrong_flags_are_rejected_in_one_line(gin_file, flags, message):
    ended = _run(f"--gin_file={gin_file}", *flags)
    assert ended.returncode == 2 and message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_batch_that_does_not_divide_is_no_question_of_the_image_size():
    ended = _run(
        "--gin_file=gin/runs/digits_tiny_ar.gin", "--memory_gb=1", "--flops=1e12", "--replicas=3"
    )
    assert ended.returncode == 2 and ended.stderr.startswith("error: the batch size must divide")


DIGITS = ["--gin_file=gin/runs/digits_tiny_ar.gin", "--image_size=8"]


@pytest.mark.skipif(bool(importlib.util.find_spec("jax")), reason="jax is installed")
def test_without_the_compilers_one_line_names_what_to_install():
    ended = _run(*DIGITS, "--compile_for=h100")
    assert ended.returncode == 2 and "requirements-compile.txt" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.compile
@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="needs requirements-compile.txt")
def test_the_compiler_of_a_device_says_what_the_planned_step_needs(tmp_path):
    ended = _run(*DIGITS, "--compile_for=h100", f"--workdir={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    assert "on 1 x 84.943 GB" in ended.stdout and "total by the compiler" in ended.stdout
    [plan] = json.loads((tmp_path / "plan.json").read_text())
    for setting in (plan["without_remat"], plan["with_remat"]):
        # Adam's state, and less than the formula, whose activations are those of larger models.
        assert 12 * plan["parameters"] < setting["compiled_bytes"] < 2 * setting["total_bytes"]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.0004, "0.4 ms"),
        (0.0642, "64 ms"),
        (1.26, "1.3 s"),
        (12.4, "12 s"),
        (300, "5.0 min"),
        (270_000, "3.1 days"),
        (32_400_000, "375 days"),
        (94_608_000, "3.0 years"),
    ],
)
def test_durations_are_written_for_people(seconds, text):
    assert duration(seconds) == text
