"""Claims about the planner: a run file is enough, its data need not be there."""

import json
import subprocess
import sys

import pytest


def _run(*arguments):
    command = [sys.executable, "-m", "tools.plan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    "name, parameters", [("imagenet32_l_ar", 1_362_250_752), ("web64_xl_ar", 6_810_875_904)]
)
def test_the_papers_runs_are_planned_without_their_data(tmp_path, name, parameters):
    ended = _run(
        f"--gin_file=gin/runs/{name}.gin",
        "--memory_gb=80",
        "--flops=312e12",
        f"--workdir={tmp_path}",
    )
    assert ended.returncode == 0, ended.stderr
    assert f"{parameters:,} parameters" in ended.stdout and "40.0 % of it" in ended.stdout
    assert json.loads((tmp_path / "plan.json").read_text())["parameters"] == parameters


def test_the_speed_of_this_machine_is_measured_if_none_is_given():
    ended = _run("--gin_file=gin/runs/digits_tiny_ar.gin", "--memory_gb=1", "--replicas=2")
    assert ended.returncode == 0, ended.stderr
    assert "measured" in ended.stdout and "2 x 1 GB" in ended.stdout


def test_a_size_that_nothing_tells_is_asked_for(tmp_path):
    run = tmp_path / "own.gin"
    run.write_text(
        'include "gin/runs/digits_tiny_ar.gin"\n'
        f"train.source = @tfrecords()\ntfrecords.directory = '{tmp_path}'\n"
    )
    refused = _run(f"--gin_file={run}", "--memory_gb=1", "--flops=1e12")
    assert refused.returncode == 2 and "give --image_size" in refused.stderr
    assert refused.stderr.count("error: ") == 1 and "Traceback" not in refused.stderr
    told = _run(f"--gin_file={run}", "--memory_gb=1", "--flops=1e12", "--image_size=8")
    assert told.returncode == 0 and "203,520 parameters" in told.stdout
    missing = _run("--gin_file=gin/models/s.gin", "--memory_gb=1")
    assert missing.returncode == 2 and "run file" in missing.stderr
