"""Tests of the working directory: one run, one configuration, one process."""

import json
import os
import subprocess
import sys

import pytest

from igpt_tf.errors import InputError
from igpt_tf.palette import Palette
from igpt_tf.training.rewinds import NonFiniteLoss, Rewinds
from igpt_tf.training.summaries import remove_lines_after
from igpt_tf.training.workdir import RunIdentity, Workdir, refuse_unwritable

DATA = {
    "source": {"name": "digits", "arguments": {}},
    "splits": {
        "train": {"num_images": 24, "fingerprint": "aa"},
        "valid": {"num_images": 3, "fingerprint": "bb"},
    },
    "working_directory": "/",
}
CONFIGURATION = "# Parameters for train:\ntrain.seed = 0\ntrain.batch_size = \\\n    64\n"
GREYS = Palette.grey(4)


def identity(configuration=CONFIGURATION, palette=GREYS, **data):
    return RunIdentity(configuration, palette, {**DATA, **data})


def test_workdir_of_another_configuration_is_refused_with_the_difference(tmp_path):
    folder = Workdir(str(tmp_path))
    folder.claim(identity())
    folder.claim(identity())
    with pytest.raises(InputError, match="train.seed = 1 where it was 0"):
        folder.claim(identity(CONFIGURATION.replace("seed = 0", "seed = 1"), GREYS))
    assert (tmp_path / "operative_config.gin").read_text() == CONFIGURATION


@pytest.mark.parametrize("free", ["train.num_rewinds = 3", "intervals.log_every = 7"])
def test_resumed_run_may_change_what_does_not_affect_its_steps(tmp_path, free):
    folder = Workdir(str(tmp_path))
    folder.claim(identity())
    folder.claim(identity(CONFIGURATION + free + "\n", GREYS))
    assert (tmp_path / "operative_config.gin").read_text() == CONFIGURATION + free + "\n"
    folder.write_result({"step": 3})
    with pytest.raises(InputError, match="another configuration"):
        folder.claim(identity())


def lengthened(num_steps, *more):
    return identity("\n".join([CONFIGURATION, f"train.num_steps = {num_steps}", *more]) + "\n")


def finished_run(path):
    folder = Workdir(str(path))
    assert folder.claim(lengthened(10))
    (path / "checkpoints/ckpt-10.index").write_bytes(b"")
    folder.write_result({"step": 10})
    assert not folder.claim(lengthened(10))
    return folder


@pytest.mark.parametrize("more", [["train.export = 'last'"], ["intervals.log_every = 7"]])
def test_longer_run_is_unfinished_again_and_may_change_what_an_unfinished_run_may(tmp_path, more):
    folder = finished_run(tmp_path)
    assert folder.claim(lengthened(20, *more))
    assert folder.length_before == 10 and folder.result() is None
    assert "train.num_steps = 20" in (tmp_path / "operative_config.gin").read_text()
    assert folder.claim(lengthened(30, *more))  # unfinished
    assert folder.length_before == 20
    with pytest.raises(InputError, match="train.batch_size"):
        folder.claim(lengthened(40, "train.batch_size = 1"))


def test_finished_run_is_exported_again_and_nothing_else_may_change(tmp_path):
    folder = finished_run(tmp_path)
    for also in ("intervals.log_every = 7", "train.num_rewinds = 3", "train.seed = 5"):
        with pytest.raises(InputError, match="another configuration"):
            folder.claim(lengthened(10, "train.export = 'last'", also))
    assert folder.result() == {"step": 10}
    assert folder.claim(lengthened(10, "train.export = 'last'"))
    assert folder.result() is None and folder.length_before is None


def test_run_is_not_shortened(tmp_path):
    folder = finished_run(tmp_path)
    with pytest.raises(InputError, match="not shortened.*train.num_steps = 9 where it was 10"):
        folder.claim(lengthened(9))
    (tmp_path / "result.json").unlink()
    with pytest.raises(InputError, match="not shortened"):
        folder.claim(lengthened(9))


@pytest.mark.parametrize("now", [(20,), (10, "train.export = 'last'")])
def test_finished_run_without_checkpoints_keeps_its_result(tmp_path, now):
    folder = finished_run(tmp_path)
    (tmp_path / "checkpoints/ckpt-10.index").unlink()
    with pytest.raises(InputError, match="no checkpoint from which"):
        folder.claim(lengthened(*now))
    assert folder.result() == {"step": 10}


def test_finished_run_whose_data_changed_is_not_lengthened(tmp_path):
    folder = finished_run(tmp_path)
    longer = lengthened(20)
    with pytest.raises(InputError, match="data have changed"):
        folder.claim(RunIdentity(longer.configuration, GREYS, {**DATA, "splits": changed_data()}))
    assert folder.result() == {"step": 10}


def test_exports_of_later_steps_are_removed(tmp_path):
    for name in ("900", "1400", "1500", "notes"):
        (tmp_path / "export" / name).mkdir(parents=True)
    Workdir(str(tmp_path)).remove_exports_after(1400)
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == [
        "1400",
        "900",
        "notes",
    ]


@pytest.mark.parametrize("name", ["intervals.evaluate_every", "intervals.num_heldout_images"])
def test_settings_that_choose_the_best_step_may_not_change(tmp_path, name):
    folder = Workdir(str(tmp_path))
    folder.claim(identity())
    with pytest.raises(InputError, match=name):
        folder.claim(identity(f"{CONFIGURATION}{name} = 7\n", GREYS))
    assert (tmp_path / "operative_config.gin").read_text() == CONFIGURATION


def test_workdir_of_another_palette_is_refused_and_keeps_its_own(tmp_path):
    folder = Workdir(str(tmp_path))
    folder.claim(identity())
    others = Palette(GREYS.centroids[::-1])
    with pytest.raises(InputError, match=f"{others.fingerprint}, where it was {GREYS.fingerprint}"):
        folder.claim(identity(CONFIGURATION, others))
    assert Palette.load(str(tmp_path / "palette.npy")).fingerprint == GREYS.fingerprint


def test_damaged_palette_is_named_with_the_fix(tmp_path):
    folder = Workdir(str(tmp_path))
    folder.claim(identity())
    (tmp_path / "palette.npy").write_bytes(b"")
    with pytest.raises(InputError, match="damaged.*remove this file.*palette.npy"):
        folder.claim(identity())
    (tmp_path / "palette.npy").unlink()
    folder.claim(identity())
    assert (tmp_path / "palette.npy").exists()


def test_second_process_is_refused_and_the_lock_of_a_killed_one_is_released(tmp_path):
    code = (
        "from igpt_tf.training.workdir import Workdir\n"
        f"folder = Workdir({str(tmp_path)!r})\n"
        "print('locked', flush=True)\n"
        "input()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout.readline() == b"locked\n"
    with pytest.raises(InputError, match="another process"):
        Workdir(str(tmp_path))
    first.kill()
    first.wait()
    Workdir(str(tmp_path))


def test_result_marks_the_run_as_finished(tmp_path):
    folder = Workdir(str(tmp_path))
    assert folder.result() is None
    folder.write_result({"step": 3})
    assert folder.result() == {"step": 3}


def test_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot be written"):
            Workdir(str(path))
        with pytest.raises(InputError, match="cannot be written"):
            refuse_unwritable(str(path))
    refuse_unwritable(str(tmp_path / "not" / "yet"))
    assert not (tmp_path / "not").exists()


def test_lines_of_later_steps_and_truncated_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    test = '{"step": 1, "split": "test"}\n'
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n' + test + '{"st')
    remove_lines_after(str(path), 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_lines_without_a_step_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": "two"}\n{"step": null}\n[]\n{"step": 2}\n')
    remove_lines_after(str(path), 2)
    assert path.read_text() == '{"step": 2}\n'


DAMAGED = [
    ("result.json", b'{"step": 3, "nats', lambda folder: folder.result()),
    ("result.json", b"[3]", lambda folder: folder.result()),
    ("result.json", b"\xff", lambda folder: folder.result()),
    ("result.json", b"", lambda folder: folder.result()),
    ("operative_config.gin", b"train.seed = \xff", lambda x: x.claim(identity())),
    ("operative_config.gin", b"", lambda folder: folder.claim(identity())),
    (
        "metrics.jsonl",
        b'{"step": 1}\n\xff',
        lambda x: remove_lines_after(x.file("metrics.jsonl"), 0),
    ),
]


@pytest.mark.parametrize(("name", "content", "read"), DAMAGED)
def test_damaged_file_is_named_with_the_fix_and_left_alone(tmp_path, name, content, read):
    folder = Workdir(str(tmp_path))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        InputError, match=f"(damaged|cannot be read).*start again.*{name}"
    ) as refusal:
        read(folder)
    assert "\n" not in str(refusal.value)
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("name", ["result.json", "operative_config.gin"])
def test_folder_in_the_place_of_a_file_is_named(tmp_path, name):
    folder = Workdir(str(tmp_path))
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"(Is a directory|not a regular file).*{name}"):
        folder.claim(identity())
        folder.result()


def test_file_in_the_place_of_the_exports_is_named_before_the_first_step(tmp_path):
    (tmp_path / "export").write_text("mine")
    with pytest.raises(InputError, match=f"move it away.*{tmp_path / 'export'}"):
        Workdir(str(tmp_path))
    assert (tmp_path / "export").read_text() == "mine"


def changed_data():
    """Twelve images were added, which changes the random split."""
    return {
        "train": {"num_images": 35, "fingerprint": "cc"},
        "valid": {"num_images": 4, "fingerprint": "dd"},
    }


def test_run_whose_data_changed_is_refused_unless_this_is_accepted(tmp_path, caplog):
    folder = Workdir(str(tmp_path))
    folder.claim(identity())
    folder.claim(identity())
    with pytest.raises(InputError, match="train: 35 images, 24 when.*workdir=") as error:
        folder.claim(identity(splits=changed_data()))
    assert "allow_changed_data" in str(error.value) and "\n" not in str(error.value)
    assert json.loads((tmp_path / "data.json").read_text()) == DATA
    folder.claim(identity(splits=changed_data()), allow_changed_data=True)
    assert "train: 35 images, 24 when the run began" in caplog.text
    folder.claim(identity(splits=changed_data()))


def test_finished_run_needs_no_data(tmp_path):
    folder = Workdir(str(tmp_path))
    folder.claim(identity())
    folder.write_result({"step": 3})
    folder.claim(identity(splits=changed_data()))
    assert json.loads((tmp_path / "data.json").read_text()) == DATA


def test_paths_are_compared_resolved(tmp_path, monkeypatch):
    (tmp_path / "flat").mkdir()
    (tmp_path / "elsewhere").mkdir()
    folder = Workdir(str(tmp_path / "run"))
    line = CONFIGURATION + "image_folder.directory = {!r}\n"
    folder.claim(identity(line.format("flat"), working_directory=str(tmp_path)))
    monkeypatch.chdir(tmp_path / "elsewhere")
    for same in (f"{tmp_path}/flat/", "../flat", f"{tmp_path}/elsewhere/../flat"):
        folder.claim(identity(line.format(same), working_directory=str(tmp_path / "elsewhere")))
    with pytest.raises(InputError, match="image_folder.directory = 'flat' where it was"):
        folder.claim(identity(line.format("flat")))


@pytest.mark.parametrize("content", [b"", b"{}", b'{"splits": 3}'])
def test_damaged_record_of_the_data_is_named_with_the_fix(tmp_path, content):
    folder = Workdir(str(tmp_path))
    folder.claim(identity())
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(InputError, match="record of the run's data cannot be read.*remove it"):
        folder.claim(identity())


def test_empty_palette_is_named_with_the_fix(tmp_path):
    (tmp_path / "palette.npy").write_bytes(b"")
    with pytest.raises(InputError, match="palette of the run is damaged; remove this file"):
        Workdir(str(tmp_path)).claim(identity())


def test_files_of_a_run_are_synced_before_they_are_renamed(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        events.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def record_replace(source, target):
        events.append(("rename", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    folder = Workdir(str(tmp_path))
    folder.claim(identity())
    folder.write_result({"step": 3})
    remove_lines_after(folder.file("metrics.jsonl"), 0)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    remove_lines_after(folder.file("metrics.jsonl"), 0)
    Rewinds(folder.file("rewinds.json"), 1).add(1, NonFiniteLoss(1, 2))
    names = ("operative_config.gin", "palette.npy", "data.json", "result.json", "metrics.jsonl")
    for name in (*names, "rewinds.json"):
        path = str(tmp_path / name)
        at = events.index(("rename", path))
        assert events[at - 1][0] == "fsync" and events[at - 1][1].startswith(path), name
        assert events[at + 1] == ("fsync", str(tmp_path)), name
