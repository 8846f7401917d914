"""Tests of the main program: how it starts, ends, stops and resumes, on the real command."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from igpt_tf import runtime
from tests import programs

RUN = "gin/runs/digits_tiny_ar.gin"
SHORT = (
    "train.num_steps=12",
    "intervals.evaluate_every=4",
    "intervals.checkpoint_every=4",
    "intervals.sample_every=0",
    "intervals.probe_every=0",
    "train.batch_size=16",
    "build_optimizer.warmup_steps=2",
    "build_model.num_layers=2",
    "build_model.hidden_dim=16",
)


def arguments(workdir, *bindings):
    bindings = [f"--gin_param={binding}" for binding in (*SHORT, *bindings)]
    return [f"--gin_file={RUN}", f"--workdir={workdir}", *bindings]


def command(workdir):
    return [sys.executable, "-m", "igpt_tf.main", *arguments(workdir)]


def run(workdir, *bindings, flags=(), **environment):
    return programs.run("igpt_tf.main", *arguments(workdir, *bindings), *flags, **environment)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight") / "run"
    subprocess.run(command(workdir), check=True, stdout=subprocess.DEVNULL)
    return workdir


def test_workdir_has_the_files_of_the_contract(straight):
    result = json.loads((straight / "result.json").read_text())
    assert result["nats_per_token"]["valid"] < result["baselines"]["uniform"]
    assert result["num_images"] == {"train": 1437, "valid": 360}
    names = {str(p.relative_to(straight)) for p in straight.rglob("*") if p.is_file()}
    assert {"metrics.jsonl", "operative_config.gin", "palette.npy", "result.json"} <= names
    assert "checkpoints/ckpt-12.index" in names
    assert f"{result['export']}/saved_model.pb" in names
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "valid"] == [4, 8, 12]
    for split in ("train", "valid"):
        assert any(name.startswith(f"summaries/{split}/events") for name in names)


def test_best_held_out_step_is_exported(straight):
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    held_out = {x["step"]: x["nats_per_token"] for x in lines if x["split"] == "valid"}
    result = json.loads((straight / "result.json").read_text())
    assert result["step"] == min(held_out, key=held_out.get)
    assert result["nats_per_token"]["valid"] == pytest.approx(min(held_out.values()), rel=1e-5)


def test_finished_run_is_left_as_it_is(straight):
    before = (straight / "result.json").stat().st_mtime_ns
    ended = run(straight)
    assert ended.returncode == 0 and "is finished" in ended.stdout
    assert (straight / "result.json").stat().st_mtime_ns == before


def test_operative_configuration_alone_repeats_the_run(straight, tmp_path):
    config = straight / "operative_config.gin"
    programs.done("igpt_tf.main", f"--gin_file={config}", f"--workdir={tmp_path / 'again'}")
    assert_same_end(straight, tmp_path / "again")


def assert_same_end(one, other):
    """Same result, same final weights and optimizer, bit for bit."""
    import tensorflow as tf

    assert (one / "result.json").read_text() == (other / "result.json").read_text()
    readers = [tf.train.load_checkpoint(str(w / "checkpoints/ckpt-12")) for w in (one, other)]
    for name in readers[0].get_variable_to_shape_map():
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH" and "save_counter" not in name:
            np.testing.assert_array_equal(*(r.get_tensor(name) for r in readers), err_msg=name)


def wait_for(path, process):
    for _ in range(1200):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.1)


@pytest.mark.parametrize(
    "number, code",
    [
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.faults),
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
    ],
)
def test_interrupted_run_ends_like_an_uninterrupted_one(straight, tmp_path, number, code):
    workdir = tmp_path / "run"
    process = subprocess.Popen(command(workdir), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(workdir / "checkpoints/ckpt-4.index", process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr.decode()
    assert b"Traceback" not in stderr
    assert (b"; the same command continues" in stderr) == (number != signal.SIGKILL)
    assert not (workdir / "result.json").exists()
    assert run(workdir).returncode == 0
    assert_same_end(straight, workdir)


@pytest.mark.faults
def test_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(straight, tmp_path):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(workdir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(workdir / "checkpoints/ckpt-8.index", process)
    process.kill()
    process.wait()
    newest = max((workdir / "checkpoints").glob("ckpt-*.data*"), key=os.path.getmtime)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    ended = run(workdir)
    assert ended.returncode == 0 and "is damaged" in ended.stderr
    assert newest.name.split(".")[0] in ended.stderr
    assert_same_end(straight, workdir)


@pytest.mark.parametrize(
    "bindings, named",
    [
        (["train.num_stesp=3"], "num_stesp"),
        (["image_folder.heldout=0.5"], "image_folder.heldout"),
        (["build_model.vocabulary_size=16"], "palette"),
        (["build_model.num_heads=3"], "num_heads"),
        (["train.batch_size=0"], "batch_size"),
        (["train.export='newest'"], "newest"),
        (["train.weights='averaged'"], "ema_momentum"),
        (["step_options.steps_per_execution=5"], "steps_per_execution=5"),
        (["intervals.profile_steps=(13, 14)"], "profile_steps=(13, 14)"),
        (["train.palette=@load_palette()", "load_palette.path='none.npy'"], "none.npy"),
        # Before the images: the source lacks its folder.
        (["train.initial_model='none'", "train.source=@cifar10()"], "path=none"),
    ],
)
def test_wrong_setting_ends_with_code_2_and_one_line(tmp_path, bindings, named):
    ended = run(tmp_path / "run", *bindings)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert named in ended.stderr


def test_averaged_weights_with_several_steps_per_execution_are_exported_and_profiled(tmp_path):
    ended = run(
        tmp_path / "run",
        "train.weights='averaged'",
        "build_optimizer.ema_momentum=0.9",
        "step_options.steps_per_execution=4",
        "intervals.log_every=4",
        "intervals.profile_steps=(3, 4)",
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    held_out = {x["step"]: x["nats_per_token"] for x in lines if x["split"] == "valid"}
    assert list(held_out) == [4, 8, 12]
    assert result["nats_per_token"]["valid"] == pytest.approx(held_out[result["step"]], rel=1e-5)
    assert list((tmp_path / "run/summaries").glob("plugins/profile/*/*.xplane.pb"))


def test_too_little_memory_ends_in_one_line_with_advice(tmp_path):
    # Enough for weights and constants, whose lack TensorFlow does not survive, not for a step.
    large = "build_model.hidden_dim=256", "train.batch_size=1024"
    ended = run(tmp_path / "run", *large, TF_CPU_BFC_MEM_LIMIT_IN_MB="128")
    *bar, line = ended.stderr.splitlines()
    assert ended.returncode == 2 and line.startswith("error: not enough memory"), ended.stderr
    assert "step_options.gradient_accumulation_steps" in line and all(
        "pretrain" in x for x in bar if x
    )


LARGE_TENSORS = """
from igpt_tf import cli
from igpt_tf import runtime
runtime.import_tensorflow()
import resource, tensorflow as tf
x = tf.zeros([2**24])
def faults():
    for _ in range(4):
        x + 1.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(-faults() + faults())
"""


def test_large_tensors_reuse_freed_memory():
    ended = subprocess.run([sys.executable, "-c", LARGE_TENSORS], capture_output=True, text=True)
    assert int(ended.stdout) < 4 * 2**24 * 4 / 4096 / 100  # mapped anew, all its pages would fault


def test_mistyped_flag_ends_with_code_2_and_one_line():
    main = [sys.executable, "-m", "igpt_tf.main", "--gin_fiel=x"]
    ended = subprocess.run(main, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "gin_fiel" in ended.stderr


def test_help_lists_the_flags():
    main = [sys.executable, "-m", "igpt_tf.main", "--help"]
    ended = subprocess.run(main, capture_output=True, text=True)
    assert ended.returncode == 0 and not ended.stderr
    assert all(flag in ended.stdout for flag in ("Pretrains", "--gin_file", "--workdir"))


@pytest.mark.parametrize(
    ("files", "binding", "missing"),
    [
        (["base.gin"], "train.batch_size=3", "train.source and train.palette"),
        (["runs/digits_tiny_ar.gin"], "train.source=@cifar10()", "cifar10.directory"),
    ],
)
def test_missing_value_ends_with_code_2_and_one_line(files, binding, missing):
    files = [f"--gin_file=gin/{file}" for file in files]
    line = programs.refused_at_once("igpt_tf.main", "--dry_run", f"--gin_param={binding}", *files)
    assert f"error: {missing}" in line and "must be bound" in line


def test_other_configuration_in_the_same_workdir_is_refused(straight):
    before = (straight / "operative_config.gin").read_text()
    ended = run(straight, "train.seed=1")
    assert ended.returncode == 2 and "train.seed = 1 where it was 0" in ended.stderr
    assert (straight / "operative_config.gin").read_text() == before


def test_non_finite_loss_ends_the_run(tmp_path):
    workdir = tmp_path / "run"
    ended = run(workdir, "build_optimizer.learning_rate=1e30", "build_optimizer.warmup_steps=10")
    assert ended.returncode == 2 and "between steps" in ended.stderr
    assert not (workdir / "result.json").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    ended = run(tmp_path / "run", flags=["--dry_run"])
    assert ended.returncode == 0 and "1,437 training" in ended.stdout
    assert not (tmp_path / "run").exists()


PRINT_PARALLEL_OPS = """
from igpt_tf import cli
from igpt_tf import main
from igpt_tf import runtime
cli.run(lambda: main.main() or print(runtime.num_parallel_ops()))
"""


@pytest.mark.parametrize("compiled", [False, True])
def test_operations_have_one_thread_unless_xla_compiles(compiled):
    binding = f"--gin_param=step_options.jit_compile={compiled}"
    command = [sys.executable, "-c", PRINT_PARALLEL_OPS, f"--gin_file={RUN}", "--dry_run", binding]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    alone = compiled or runtime.num_cores() == 1
    assert (ended.stdout.split()[-1] == "1") == alone


def test_workdir_records_hardware_and_versions(straight):
    [line] = (straight / "environment.jsonl").read_text().splitlines()
    line = json.loads(line)
    assert "-m igpt_tf.main --gin_file=" in line["command"]
    assert set(line["versions"]) == {"igpt_tf", "tensorflow", "keras", "python"}
    assert line["hardware"]["cores"] >= 1
