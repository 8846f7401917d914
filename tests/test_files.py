"""How files are written and JSON is read; the folder of a tool."""

import errno
import json
import os

import numpy as np
import pytest

from igpt_tf import files
from igpt_tf.errors import InputError
from igpt_tf.evaluation import galleries

# On Linux even root cannot write into this folder.
UNWRITABLE = "/proc"
needs_proc = pytest.mark.skipif(not os.path.isdir(UNWRITABLE), reason="needs Linux")


def test_a_file_is_synced_before_its_rename_and_its_folder_after(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace

    def traced_sync(descriptor):
        calls.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        sync(descriptor)

    def traced_replace(source, target):
        calls.append(("rename", os.path.basename(source), os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", traced_sync)
    monkeypatch.setattr(os, "replace", traced_replace)
    files.write_json(str(tmp_path / "run" / "result.json"), {"step": np.int64(3)})
    assert calls == [
        ("sync", "result.json.part"),
        ("rename", "result.json.part", "result.json"),
        ("sync", "run"),
    ]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == {"step": 3}


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = str(tmp_path / "palette.npy")
    files.write_text(path, "old")
    with pytest.raises(OSError, match="full"), files.atomic_write(path) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "full")
    assert os.listdir(tmp_path) == ["palette.npy"]
    assert (tmp_path / "palette.npy").read_text() == "old"


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "b").write_text("new")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").write_text("old")
    files.replace_folder(str(tmp_path / "new"), str(tmp_path / "old"))
    assert os.listdir(tmp_path) == ["old"] and os.listdir(tmp_path / "old") == ["b"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b'{"step": NaN}',
        b'{"step": 1e999}',
        b'{"step": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"step": "3"}',
        b'{"step": 3.5}',
        b'{"step": null}',
        b"[3]",
        b"\xef\xbb\xbf{}",
        b'{"\\ud800": 3}',
        b'{"step": 3, "step": 4}',
    ],
)
def test_json_that_is_damaged_or_of_another_schema_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        files.read_json(str(path), description="the result", fix="remove it", schema=dict[str, int])
    message = str(error.value)
    assert message.startswith("the result cannot be read (") and "\n" not in message
    assert message.endswith(f"; remove it. Received: {path}") and len(message) < 500


def test_json_that_is_missing_or_a_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo.json")
    for path in (tmp_path / "none.json", tmp_path / "fifo.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read.*; fetch it again"):
            files.read_json(str(path), description="the index", fix="fetch it again")


def test_json_is_returned_as_its_schema(tmp_path):
    path = str(tmp_path / "result.json")
    files.write_json(path, {"losses": np.array([1.5, 2.0]), "step": 3})
    content = files.read_json(path, description="the result", fix="")
    assert content == {"losses": [1.5, 2.0], "step": 3}


def test_a_workdir_is_created_with_its_parents_and_stays_empty(tmp_path):
    path = str(tmp_path / "a" / "b")
    assert files.make_workdir(files.make_workdir(path)) == path
    assert os.listdir(path) == []


@needs_proc
def test_a_workdir_that_cannot_be_written_is_refused():
    with pytest.raises(InputError, match=f"cannot be written.*workdir={UNWRITABLE}"):
        files.make_workdir(UNWRITABLE)


def test_a_file_in_place_of_the_workdir_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "in"):
        with pytest.raises(InputError, match=f"cannot be created.*workdir={path}"):
            files.make_workdir(str(path))


@needs_proc
def test_sampling_checks_its_workdir_before_it_loads_the_model():
    for arguments in ({}, {"num_given": "0.5"}):
        with pytest.raises(InputError, match="the workdir cannot be written"):
            galleries.sample(saved_model="nowhere", workdir=UNWRITABLE, **arguments)
