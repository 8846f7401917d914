"""Sharded training: the losses of one device, with weights and optimizer state divided."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.training.test_distributed import free_addresses

RUN = {
    "train.num_steps": 8,
    "build_optimizer.warmup_steps": 2,
    "build_model.num_layers": 2,
    "build_model.hidden_dim": 32,
    "intervals.log_every": 1,
    "intervals.evaluate_every": 4,
    "intervals.checkpoint_every": 4,
    "intervals.sample_every": 0,
    "intervals.probe_every": 0,
}
SHARDED = {"train.strategy": "@sharded_strategy()"}
OPTIONS = {
    "step_options.gradient_accumulation_steps": 2,
    "step_options.clip_norm": 0.5,
    "build_optimizer.weight_decay": 0.01,
    "build_optimizer.ema_momentum": 0.5,
    "train.weights": '"averaged"',
}


def command(workdir, bindings) -> list[str]:
    bindings = {**RUN, **bindings}
    return [
        *(sys.executable, "-m", "igpt_tf.main", "--gin_file=gin/runs/digits_tiny_ar.gin"),
        *(f"--gin_param={name}={value}" for name, value in bindings.items()),
        f"--workdir={workdir}",
    ]


def train(workdir, **options) -> subprocess.CompletedProcess:
    bindings = options.pop("bindings", {})
    return subprocess.run(
        command(workdir, bindings), capture_output=True, text=True, timeout=300, check=False
    )


def rows(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir) -> dict:
    return {(row["step"], row["split"]): row["nats_per_token"] for row in rows(workdir)}


def start_workers(workdir, bindings, num_workers=2) -> list[subprocess.Popen]:
    addresses = free_addresses(num_workers)
    bindings = {**SHARDED, "sharded_strategy.cluster": '"tf_config"', **bindings}
    workers = []
    for index in range(num_workers):
        task = {"type": "worker", "index": index}
        tf_config = json.dumps({"cluster": {"worker": addresses}, "task": task})
        workers.append(
            subprocess.Popen(
                command(workdir, bindings),
                env={**os.environ, "TF_CONFIG": tf_config},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return workers


def assert_same_losses(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, loss in one.items():
        assert other[key] == pytest.approx(loss, rel=1e-5), key


def test_four_shards_have_the_losses_of_one_device_with_every_option(tmp_path):
    single = train(tmp_path / "single", bindings=OPTIONS)
    assert single.returncode == 0, single.stderr
    four = {**OPTIONS, **SHARDED, "sharded_strategy.logical_cpus": 4}
    sharded = train(tmp_path / "sharded", bindings=four)
    assert sharded.returncode == 0, sharded.stderr
    assert_same_losses(losses(tmp_path / "single"), losses(tmp_path / "sharded"))
    for name in ("learning_rate", "gradient_norm"):
        single_values, sharded_values = (
            [row[name] for row in rows(tmp_path / folder) if row["split"] == "train"]
            for folder in ("single", "sharded")
        )
        np.testing.assert_allclose(sharded_values, single_values, rtol=1e-4)
    results = [
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("single", "sharded")
    ]
    for result in results:
        result.pop("data", None)
    np.testing.assert_allclose(*(list(r["nats_per_token"].values()) for r in results), rtol=1e-5)


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ({"step_options.jit_compile": True}, "does not compile with XLA"),
        ({"step_options.steps_per_execution": 4}, "one step per call"),
        ({"build_model.hidden_dim": 30, "build_model.num_heads": 2}, "divide an axis"),
        ({"train.batch_size": 66}, "batch size must be"),
    ],
)
@pytest.mark.slow
def test_options_that_shards_do_not_support_are_refused_in_one_line(tmp_path, bindings, message):
    four = {**SHARDED, "sharded_strategy.logical_cpus": 4}
    ended = train(tmp_path / "run", bindings={**four, **bindings})
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.faults
def test_a_run_continues_on_another_number_of_devices_and_unsharded(tmp_path):
    straight = train(tmp_path / "straight", bindings={"train.num_steps": 16})
    assert straight.returncode == 0, straight.stderr
    settings = [
        {**SHARDED, "sharded_strategy.logical_cpus": 4},
        {**SHARDED, "sharded_strategy.logical_cpus": 2},
        {},
        {**SHARDED, "sharded_strategy.logical_cpus": 4},
    ]
    run = tmp_path / "run"
    for number, setting in enumerate(settings):
        started = subprocess.Popen(
            command(run, {**setting, "train.num_steps": 16}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if number == len(settings) - 1:
            _, errors = started.communicate(timeout=300)
            assert started.returncode == 0, errors
            break
        target = run / "checkpoints" / f"ckpt-{4 * (number + 1)}.index"
        deadline = time.monotonic() + 200
        while not target.exists() and started.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert target.exists()
        started.send_signal(signal.SIGKILL)
        started.wait()
    assert_same_losses(losses(tmp_path / "straight"), losses(run))


@pytest.mark.faults
def test_two_processes_have_the_losses_of_one_device_and_survive_the_loss_of_one(tmp_path):
    single = train(tmp_path / "single")
    assert single.returncode == 0, single.stderr
    run = tmp_path / "run"
    workers = start_workers(run, {})
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "ckpt-4.index").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers[1].send_signal(signal.SIGKILL)
    _, errors = workers[0].communicate(timeout=200)
    workers[1].communicate(timeout=10)
    assert workers[0].returncode != 0, errors
    for worker in start_workers(run, {}):
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    assert_same_losses(losses(tmp_path / "single"), losses(run))


@pytest.mark.faults
def test_two_processes_start_from_a_model_and_lengthen_their_run_like_one_device(tmp_path):
    pretrained = train(tmp_path / "pretrained")
    assert pretrained.returncode == 0, pretrained.stderr
    initial = {"train.initial_model": f'"{tmp_path}/pretrained/export"'}
    longer = {**initial, "train.num_steps": 12}
    for bindings in (initial, longer):
        single = train(tmp_path / "single", bindings=bindings)
        assert single.returncode == 0, single.stderr
        for worker in start_workers(tmp_path / "run", bindings):
            _, errors = worker.communicate(timeout=300)
            assert worker.returncode == 0, errors
    assert_same_losses(losses(tmp_path / "single"), losses(tmp_path / "run"))
    assert (12, "valid") in losses(tmp_path / "run")
    assert losses(tmp_path / "run")[1, "train"] < 2.8  # fresh weights: ln 17 = 2.833
