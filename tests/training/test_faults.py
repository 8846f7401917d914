"""Fault injection on the real command (`make faults`): kills and full disks."""

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.faults

NUM_KILLS = int(os.environ.get("IGPT_NUM_KILLS", "20"))
NUM_STEPS = 300
BINDINGS = (
    f"train.num_steps={NUM_STEPS}",
    "train.batch_size=16",
    "intervals.evaluate_every=10",
    "intervals.checkpoint_every=1",
    "intervals.sample_every=0",
    "build_optimizer.warmup_steps=2",
    "build_model.num_layers=2",
    "build_model.hidden_dim=128",
)


def start(workdir, *bindings, **options):
    main = [sys.executable, "-m", "igpt_tf.main", "--gin_file=gin/runs/digits_tiny_ar.gin"]
    arguments = [f"--gin_param={binding}" for binding in (*BINDINGS, *bindings)]
    return subprocess.Popen(
        [*main, f"--workdir={workdir}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def checkpoints_of(workdir):
    return {path.name for path in (workdir / "checkpoints").glob("ckpt-*.index")}


def being_saved(workdir):
    """Whether a checkpoint is half written right now."""
    return any("temp" in path.name for path in (workdir / "checkpoints").glob("*"))


def kill_at_a_random_moment(workdir, moment: random.Random) -> str:
    """Starts the run and kills it; every other time inside a save. Returns where it was hit."""
    process, before = start(workdir), checkpoints_of(workdir)
    inside = moment.random() < 0.5
    delay = moment.uniform(0, 0.2)
    while process.poll() is None:
        if checkpoints_of(workdir) != before:
            if not inside:
                time.sleep(delay)
                break
            if being_saved(workdir):
                break
    hit = "inside a save" if being_saved(workdir) else "between saves"
    process.kill()
    process.communicate()
    return hit


def test_run_killed_at_random_moments_ends_with_equal_weights(tmp_path, capsys):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    process = start(alone)
    assert process.wait() == 0, process.stderr.read()
    moment, hits = random.Random(0), []
    while len(hits) < NUM_KILLS and not (killed / "result.json").exists():
        hits.append(kill_at_a_random_moment(killed, moment))
    process = start(killed)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert_same_end(alone, killed)
    with capsys.disabled():
        inside = hits.count("inside a save")
        print(f"\nkills survived / tried: {len(hits)} / {len(hits)}, {inside} inside a save")
    assert len(hits) == NUM_KILLS


def assert_same_end(one, other):
    import tensorflow as tf

    assert (one / "result.json").read_text() == (other / "result.json").read_text()
    readers = [
        tf.train.load_checkpoint(str(workdir / f"checkpoints/ckpt-{NUM_STEPS}"))
        for workdir in (one, other)
    ]
    for name in readers[0].get_variable_to_shape_map():
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH" and "save_counter" not in name:
            np.testing.assert_array_equal(*(r.get_tensor(name) for r in readers), err_msg=name)


def test_full_disk_ends_in_one_line_and_keeps_the_checkpoints(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        process = start(disk / "run", "intervals.keep_checkpoints=20")
        _, stderr = process.communicate()
        assert process.returncode == 2, stderr
        lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "no space" in lines[0].lower() and "Traceback" not in stderr
        metrics = (disk / "run" / "metrics.jsonl").read_text()
        assert metrics == "" or metrics.endswith("\n")
        assert checkpoints_of(disk / "run")
        subprocess.run(["mount", "-o", "remount,size=800m", str(disk)], check=True)
        process = start(disk / "run", "intervals.keep_checkpoints=20")
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
    finally:
        subprocess.run(["umount", str(disk)], check=False)
