"""Claims about the working directory: one run, one configuration, one process."""

import subprocess
import sys

import pytest

from igpt_tf.errors import InputError
from igpt_tf.palette import Palette
from igpt_tf.training.summaries import drop_after
from igpt_tf.training.workdir import Workdir, refuse_unwritable

CONFIGURATION = "# Parameters for train:\ntrain.seed = 0\ntrain.batch_size = \\\n    64\n"
GREYS = Palette.grey(4)


def test_a_workdir_of_another_configuration_is_refused_and_the_difference_named(tmp_path):
    folder = Workdir(str(tmp_path))
    folder.claim(CONFIGURATION, GREYS)
    folder.claim(CONFIGURATION, GREYS)
    with pytest.raises(InputError, match="train.seed = 1 where it was 0"):
        folder.claim(CONFIGURATION.replace("seed = 0", "seed = 1"), GREYS)
    assert (tmp_path / "operative_config.gin").read_text() == CONFIGURATION


@pytest.mark.parametrize(
    "free", ["train.export = 'last'", "train.num_rewinds = 3", "cadence.log_every = 7"]
)
def test_a_run_that_goes_on_may_change_what_has_no_say_in_its_steps(tmp_path, free):
    folder = Workdir(str(tmp_path))
    folder.claim(CONFIGURATION, GREYS)
    folder.claim(CONFIGURATION + free + "\n", GREYS)
    assert (tmp_path / "operative_config.gin").read_text() == CONFIGURATION + free + "\n"
    folder.write_result({"step": 3})
    with pytest.raises(InputError, match="another configuration"):
        folder.claim(CONFIGURATION, GREYS)


@pytest.mark.parametrize("name", ["cadence.evaluate_every", "cadence.num_heldout_images"])
def test_what_chooses_the_best_step_may_not_change(tmp_path, name):
    folder = Workdir(str(tmp_path))
    folder.claim(CONFIGURATION, GREYS)
    with pytest.raises(InputError, match=name):
        folder.claim(f"{CONFIGURATION}{name} = 7\n", GREYS)
    assert (tmp_path / "operative_config.gin").read_text() == CONFIGURATION


def test_a_workdir_of_another_palette_is_refused_and_keeps_its_own(tmp_path):
    folder = Workdir(str(tmp_path))
    folder.claim(CONFIGURATION, GREYS)
    others = Palette(GREYS.centroids[::-1])
    with pytest.raises(InputError, match=f"{others.fingerprint}, where it was {GREYS.fingerprint}"):
        folder.claim(CONFIGURATION, others)
    assert Palette.load(str(tmp_path / "palette.npy")).fingerprint == GREYS.fingerprint


def test_a_damaged_palette_in_the_workdir_is_refused_with_the_mend(tmp_path):
    folder = Workdir(str(tmp_path))
    folder.claim(CONFIGURATION, GREYS)
    (tmp_path / "palette.npy").write_bytes(b"")
    with pytest.raises(InputError, match="remove this file.*palette.npy"):
        folder.claim(CONFIGURATION, GREYS)
    (tmp_path / "palette.npy").unlink()
    folder.claim(CONFIGURATION, GREYS)
    assert (tmp_path / "palette.npy").exists()


def test_a_second_process_is_refused_and_a_dead_one_is_no_obstacle(tmp_path):
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


def test_a_result_marks_the_run_as_finished(tmp_path):
    folder = Workdir(str(tmp_path))
    assert folder.result() is None
    folder.write_result({"step": 3})
    assert folder.result() == {"step": 3}


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot be written"):
            Workdir(str(path))
        with pytest.raises(InputError, match="cannot be written"):
            refuse_unwritable(str(path))
    refuse_unwritable(str(tmp_path / "not" / "yet"))
    assert not (tmp_path / "not").exists()


def test_lines_of_steps_that_are_taken_again_and_lines_cut_short_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    test = '{"step": 1, "split": "test"}\n'
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n' + test + '{"st')
    drop_after(str(path), 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
