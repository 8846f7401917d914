"""Tests of several devices and several hosts, on the real command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.distributed
BINDINGS = (
    "train.num_steps=20",
    "intervals.evaluate_every=4",
    "intervals.checkpoint_every=4",
    "intervals.sample_every=0",
    "intervals.probe_every=4",
    "intervals.log_every=1",
    "train.batch_size=16",
    "build_optimizer.warmup_steps=2",
    "build_model.num_layers=2",
    "build_model.hidden_dim=16",
)
TWO_WORKERS = ("train.strategy=@multi_worker_strategy()",)


def start(workdir, *bindings, tf_config=None):
    main = [sys.executable, "-m", "igpt_tf.main", "--gin_file=gin/runs/digits_tiny_ar.gin"]
    arguments = [f"--gin_param={binding}" for binding in (*BINDINGS, *bindings)]
    environment = {**os.environ, **({"TF_CONFIG": json.dumps(tf_config)} if tf_config else {})}
    return subprocess.Popen(
        [*main, f"--workdir={workdir}", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_addresses(number):
    addresses = []
    for _ in range(number):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            addresses.append(f"127.0.0.1:{free.getsockname()[1]}")
    return addresses


def start_workers(workdir, *bindings_per_worker, jobs=("worker", "worker")):
    """Starts one process per job, with bindings of its own."""
    addresses, cluster, tasks = free_addresses(len(jobs)), {}, []
    for job, address in zip(jobs, addresses, strict=True):
        cluster.setdefault(job, []).append(address)
        tasks.append({"type": job, "index": len(cluster[job]) - 1})
    return [
        start(
            workdir,
            *TWO_WORKERS,
            *(bindings_per_worker[i] if bindings_per_worker else ()),
            tf_config={"cluster": cluster, "task": task},
        )
        for i, task in enumerate(tasks)
    ]


def end(process, code=0, seconds=240):
    _, stderr = process.communicate(timeout=seconds)
    assert process.returncode == code, stderr
    return stderr


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["nats_per_token"] for line in lines if "nats_per_token" in line]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    end(start(workdir))
    return workdir


def test_two_logical_devices_give_the_losses_of_one(one_device, tmp_path):
    end(
        start(
            tmp_path / "run",
            "train.strategy=@mirrored_strategy()",
            "mirrored_strategy.logical_cpus=2",
        )
    )
    assert losses(tmp_path / "run") == pytest.approx(losses(one_device), rel=1e-5)


def test_four_microbatches_give_the_losses_of_the_whole_batch(one_device, tmp_path):
    end(start(tmp_path / "run", "step_options.gradient_accumulation_steps=4"))
    assert losses(tmp_path / "run") == pytest.approx(losses(one_device), rel=1e-5)


def test_two_workers_give_the_losses_of_one_device_and_the_chief_writes_the_run(
    one_device, tmp_path
):
    workdir = tmp_path / "run"
    for process in start_workers(workdir):
        end(process)
    assert losses(workdir) == pytest.approx(losses(one_device), rel=1e-5)
    result = json.loads((workdir / "result.json").read_text())
    assert (workdir / result["export"] / "saved_model.pb").exists()


def test_lost_worker_is_reported_and_the_run_resumes(one_device, tmp_path):
    workdir = tmp_path / "run"
    chief, other = start_workers(workdir)
    for _ in range(1200):
        if (workdir / "checkpoints/ckpt-4.index").exists():
            break
        time.sleep(0.05)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    stderr = end(chief, code=2, seconds=120)
    assert "another worker was lost" in stderr and "Traceback" not in stderr
    for process in start_workers(workdir):
        end(process)
    assert losses(workdir) == pytest.approx(losses(one_device), rel=1e-5)


def test_signal_to_one_worker_stops_all_at_the_same_step_and_the_run_resumes(one_device, tmp_path):
    workdir = tmp_path / "run"
    chief, other = start_workers(workdir)
    while not (workdir / "checkpoints/ckpt-4.index").exists():
        assert chief.poll() is None
        time.sleep(0.05)
    other.send_signal(signal.SIGTERM)
    end(chief, code=143), end(other, code=143)
    assert (workdir / "checkpoints/ckpt-10.index").exists()
    for process in start_workers(workdir):
        end(process)
    assert losses(workdir) == pytest.approx(losses(one_device), rel=1e-5)


def test_strategy_without_a_cluster_is_refused_in_one_line(tmp_path):
    stderr = end(start(tmp_path / "run", *TWO_WORKERS), code=2)
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and "TF_CONFIG" in stderr


@pytest.mark.faults
@pytest.mark.parametrize(
    ("bindings", "named"),
    [
        ("build_optimizer.learning_rate=0.04", "build_optimizer.learning_rate = 0.04"),
        ("train.batch_size=32", "train.batch_size = 32"),
        ("digits.heldout=0.3", "digits.heldout = 0.3"),
    ],
)
def test_workers_with_different_settings_are_refused_before_the_first_step(
    tmp_path, bindings, named
):
    workdir = tmp_path / "run"
    for process in start_workers(workdir, (), (bindings,)):
        stderr = end(process, code=2)
        [line] = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert f"{named} on worker 1" in line and "Traceback" not in stderr
    assert not workdir.exists()


@pytest.mark.faults
def test_worker_that_ends_before_the_first_step_is_reported_by_the_other(tmp_path):
    chief, other = start_workers(tmp_path / "run", (), ("train.batch_size=17",))
    assert "train.batch_size=17" in end(other, code=2)
    stderr = end(chief, code=2)
    assert "another worker was lost" in stderr and "Traceback" not in stderr


@pytest.mark.faults
def test_chief_and_worker_train_one_run(one_device, tmp_path):
    workdir = tmp_path / "run"
    for process in start_workers(workdir, jobs=("chief", "worker")):
        end(process)
    assert losses(workdir) == pytest.approx(losses(one_device), rel=1e-5)
    assert (workdir / ".workers/1").is_dir() and (workdir / "result.json").exists()


@pytest.mark.faults
def test_worker_that_waits_in_vain_for_others_ends_in_one_line(tmp_path):
    cluster = {"worker": free_addresses(2)}
    process = start(
        tmp_path / "run",
        *TWO_WORKERS,
        "multi_worker_strategy.startup_seconds=10",
        tf_config={"cluster": cluster, "task": {"type": "worker", "index": 1}},
    )
    stderr = end(process, code=2, seconds=120)
    assert "not all workers started within 10 seconds" in stderr.splitlines()[-1]
    assert f"no answer from {cluster['worker'][0]}" in stderr
    assert "Traceback" not in stderr
