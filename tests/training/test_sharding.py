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


def start(workdir, bindings=None, environment=None) -> subprocess.Popen:
    return subprocess.Popen(
        command(workdir, bindings or {}),
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process, code=0, seconds=600) -> str:
    """Waits for the end of a process, checks its exit code and returns its stderr."""
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, errors
    return errors


def wait_for_checkpoint(process, workdir, step, seconds=200) -> None:
    index = workdir / "checkpoints" / f"ckpt-{step}.index"
    deadline = time.monotonic() + seconds
    while not index.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert index.exists()


def rows(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir) -> dict:
    return {(row["step"], row["split"]): row["nats_per_token"] for row in rows(workdir)}


def start_workers(workdir, bindings=None, num_workers=2) -> list[subprocess.Popen]:
    addresses = free_addresses(num_workers)
    bindings = {**SHARDED, "sharded_strategy.cluster": '"tf_config"', **(bindings or {})}
    tasks = [{"type": "worker", "index": index} for index in range(num_workers)]
    return [
        start(
            workdir,
            bindings,
            {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})},
        )
        for task in tasks
    ]


def assert_same_losses(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, loss in one.items():
        assert other[key] == pytest.approx(loss, rel=1e-5), key


@pytest.mark.distributed
@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_four_shards_have_the_losses_of_one_device_with_every_option(tmp_path, remat):
    options = {**OPTIONS, "build_model.remat": remat}
    four = {**options, **SHARDED, "sharded_strategy.logical_cpus": 4}
    processes = [start(tmp_path / "single", options), start(tmp_path / "sharded", four)]
    for process in processes:
        end(process)
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
    np.testing.assert_allclose(*(list(r["nats_per_token"].values()) for r in results), rtol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.slow
def test_each_device_computes_its_part_of_the_batch_only(remat):
    script = [sys.executable, "-m", "tests.training.sharded_step_time"]
    one, four = (
        float(subprocess.check_output([*script, str(n), json.dumps({"remat": remat})], text=True))
        for n in (1, 4)
    )
    assert four < 1.7 * one  # 4 if every device computes the whole batch


@pytest.mark.distributed
def test_sharded_bfloat16_has_nearly_the_losses_of_one_device(tmp_path):
    bfloat16 = {"train.precision": '"mixed_bfloat16"', "intervals.evaluate_every": 0}
    four = {**bfloat16, **SHARDED, "sharded_strategy.logical_cpus": 4}
    processes = [start(tmp_path / "single", bfloat16), start(tmp_path / "sharded", four)]
    for process in processes:
        end(process)
    single, sharded = losses(tmp_path / "single"), losses(tmp_path / "sharded")
    assert single.keys() == sharded.keys()
    np.testing.assert_allclose(list(sharded.values()), list(single.values()), rtol=2e-3)


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ({"step_options.jit_compile": True}, "does not compile with XLA"),
        ({"step_options.steps_per_execution": 4, "intervals.log_every": 4}, "one step per call"),
        ({"build_model.hidden_dim": 30, "build_model.num_heads": 2}, "divide an axis"),
        ({"train.batch_size": 66}, "batch size must be"),
        ({"train.quantize_on": '"device"'}, "applies the palette on the host"),
    ],
)
@pytest.mark.slow
def test_options_that_shards_do_not_support_are_refused_in_one_line(tmp_path, bindings, message):
    four = {**SHARDED, "sharded_strategy.logical_cpus": 4}
    errors = end(start(tmp_path / "run", {**four, **bindings}), code=2)
    assert message in errors and "Traceback" not in errors


@pytest.mark.slow
def test_a_process_missing_at_the_start_is_waited_for_a_bounded_time(tmp_path):
    tf_config = {
        "cluster": {"worker": free_addresses(2)},
        "task": {"type": "worker", "index": 0},
    }
    bindings = {
        **SHARDED,
        "sharded_strategy.cluster": '"tf_config"',
        "sharded_strategy.startup_seconds": 5,
    }
    alone = start(tmp_path / "run", bindings, {"TF_CONFIG": json.dumps(tf_config)})
    errors = end(alone, code=2, seconds=100)
    assert "not all workers started within 5 seconds" in errors and "Traceback" not in errors


@pytest.mark.faults
def test_a_run_continues_on_another_number_of_devices_and_unsharded(tmp_path):
    straight = start(tmp_path / "straight", {"train.num_steps": 16})
    run = tmp_path / "run"
    four, two = (
        {**SHARDED, "sharded_strategy.logical_cpus": number, "train.num_steps": 16}
        for number in (4, 2)
    )
    for step, setting in ((4, four), (8, two), (12, {"train.num_steps": 16})):
        killed = start(run, setting)
        wait_for_checkpoint(killed, run, step)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    end(start(run, four))
    end(straight)
    assert_same_losses(losses(tmp_path / "straight"), losses(run))


@pytest.mark.faults
def test_damaged_and_missing_shards_are_passed_over(tmp_path):
    run = tmp_path / "run"
    two = {**SHARDED, "sharded_strategy.logical_cpus": 2}
    end(start(run, {**two, "train.export": '"last"'}))
    (run / "result.json").unlink()
    straight = losses(run)
    shards = sorted((run / "checkpoints").glob("ckpt-8.data-*"))
    shards[-1].write_bytes(b"x" * shards[-1].stat().st_size)
    errors = end(start(run, {**two, "train.export": '"last"'}))
    assert "is damaged" in errors
    assert_same_losses(straight, losses(run))
    (run / "result.json").unlink()
    shards[0].unlink()
    errors = end(start(run, {**two, "train.export": '"last"'}))
    assert "is damaged" in errors
    assert_same_losses(straight, losses(run))


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    end(start(workdir, {"train.num_steps": 12}))
    return losses(workdir)


@pytest.mark.faults
def test_two_processes_have_the_losses_of_one_device_and_survive_the_loss_of_one(
    one_device, tmp_path
):
    run = tmp_path / "run"
    chief, other = start_workers(run, {"train.num_steps": 12})
    wait_for_checkpoint(chief, run, 4)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    errors = end(chief, code=2, seconds=120)
    assert "another worker was lost" in errors and "Traceback" not in errors
    for process in start_workers(run, {"train.num_steps": 12}):
        end(process)
    assert_same_losses(one_device, losses(run))


@pytest.mark.faults
def test_sigterm_to_one_process_saves_the_same_step_on_both(one_device, tmp_path):
    run = tmp_path / "run"
    chief, other = start_workers(run, {"train.num_steps": 12})
    wait_for_checkpoint(chief, run, 4)
    other.send_signal(signal.SIGTERM)
    for process in (chief, other):
        assert "saved at step 10" in end(process, code=143)
    for process in start_workers(run, {"train.num_steps": 12}):
        end(process)
    assert_same_losses(one_device, losses(run))


@pytest.mark.faults
def test_two_processes_start_from_a_model_and_lengthen_their_run_like_one_device(tmp_path):
    end(start(tmp_path / "pretrained"))
    initial = {"train.initial_model": f'"{tmp_path}/pretrained/export"'}
    longer = {**initial, "train.num_steps": 12}
    for bindings in (initial, longer):
        end(start(tmp_path / "single", bindings))
        for worker in start_workers(tmp_path / "run", bindings):
            end(worker)
    assert_same_losses(losses(tmp_path / "single"), losses(tmp_path / "run"))
    assert (12, "valid") in losses(tmp_path / "run")
    assert losses(tmp_path / "run")[1, "train"] < 2.8  # fresh weights: ln 17 = 2.833
