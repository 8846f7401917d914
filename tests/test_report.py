"""Claims about a tool's folder: it is tried before the work, and what goes wrong costs one line."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from igpt_tf.errors import InputError
from igpt_tf.evaluation import gallery
from igpt_tf.files import make_workdir
from igpt_tf.palette import Palette
from igpt_tf.sampling.params import SamplingParams

# Of Linux: a folder that nobody can write in, not even root, who needs no permission elsewhere.
UNWRITABLE = "/proc"
needs_proc = pytest.mark.skipif(not os.path.isdir(UNWRITABLE), reason="needs Linux")


def _refused(*arguments):
    """The whole stderr of an exit with code 2, one line."""
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("error: ")
    return ended.stderr


def test_a_folder_is_made_with_those_above_it_and_nothing_is_left_in_it(tmp_path):
    path = str(tmp_path / "a" / "b")
    assert make_workdir(make_workdir(path)) == path
    assert os.listdir(path) == []


@needs_proc
def test_a_folder_that_is_there_but_cannot_be_written_is_refused():
    with pytest.raises(InputError, match=f"cannot be written.*workdir={UNWRITABLE}"):
        make_workdir(UNWRITABLE)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "in"):
        with pytest.raises(InputError, match=f"cannot be created.*workdir={path}"):
            make_workdir(str(path))


@needs_proc
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("check_serving", ["--saved_model=nowhere"]),
        ("evaluate", ["--saved_model=nowhere"]),
        ("export_huggingface", ["--saved_model=nowhere"]),
        ("fit_palette", ["--images=nowhere"]),
        ("plan", ["--gin_file=nowhere", "--memory_gb=1"]),
    ],
)
def test_programs_look_at_the_folder_before_all_else(tool, arguments):
    line = _refused("-m", f"tools.{tool}", *arguments, f"--workdir={UNWRITABLE}")
    assert "the workdir cannot be written" in line


@needs_proc
def test_painting_looks_at_the_folder_before_all_else():
    common = {"params": SamplingParams(), "batch_size": None, "animate": False}
    completing = {"images": None, "source": None, "num_given": "0.5", "completions": 1}
    for write, more in ((gallery.write_samples, {}), (gallery.write_completions, completing)):
        with pytest.raises(InputError, match="the workdir cannot be written"):
            write("nowhere", UNWRITABLE, num_images=1, **common, **more)


WRITING = """
import sys
from absl import flags
from igpt_tf import cli
from igpt_tf import runtime
flags.DEFINE_string("workdir", None, "")
def main():
    raise {error}
cli.run(main)
"""


@pytest.mark.parametrize(
    "error",
    [
        f"OSError({errno.ENOSPC}, 'full', 'evaluate.png.part')",
        f"OSError({errno.EDQUOT}, 'full')",
        "OSError('512 requested and 96 written')",  # NumPy
        "RuntimeError('IoError(Os { code: 28, message: \"No space left on device\" })')",
    ],
)
def test_a_full_disk_ends_any_program_in_one_line(error):
    line = _refused("-c", WRITING.format(error=error), "--workdir=here")
    assert "no space left" in line and "workdir=here" in line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_picture_on_a_full_disk_ends_in_one_line():
    written = (
        "__import__('PIL.Image').Image.new('RGB', (9, 9)).save(open('/dev/full', 'wb'), 'PNG')"
    )
    assert "no space left" in _refused("-c", WRITING.replace("raise {error}", written))


def test_other_errors_of_files_are_still_bugs():
    script = WRITING.format(error=f"OSError({errno.EISDIR}, 'a directory')")
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 1 and "Traceback" in ended.stderr


def test_a_palette_that_finds_no_room_leaves_the_old_one(tmp_path, monkeypatch):
    path = str(tmp_path / "palette.npy")
    Palette.grey(3).save(path)

    def full(file, *_, **__):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="full"):
        Palette.grey(5).save(path)
    assert len(Palette.load(path)) == 3
