"""Tests of the training loop: order, periods, signals, resuming, rewinding."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from igpt_tf.errors import InputError
from igpt_tf.training.callbacks import Callback, Evaluate, Progress, SaveCheckpoint, StopEarly
from igpt_tf.training.rewinds import NonFiniteLoss, Rewinds
from tests.training.small_runs import NUM_STEPS, POISONED_STEP, run_loop


class Record(Callback):
    """Records the calls of the loop."""

    def __init__(self, every, on_step=lambda step: None):
        self.every = every
        self.events = []
        self._on_step = on_step

    def on_train_begin(self, loop):
        self.events.append(("begin", loop.step))

    def on_step_begin(self, loop):
        assert loop.data_seconds >= 0
        self._on_step(loop.step)

    def on_step_end(self, loop):
        self.events.append(("step", loop.step))

    def on_train_end(self, loop):
        self.events.append(("end", loop.step))


def run_recorded(workdir, every=2, num_steps=5, **options):
    record = Record(every, **options)
    loop, _ = run_loop(
        workdir, [Progress(0), record, SaveCheckpoint(3)], num_steps=num_steps, poison=False
    )
    return record.events, loop


def test_callback_is_called_every_period_and_after_the_last_step(tmp_path):
    events, _ = run_recorded(tmp_path)
    assert events == [("begin", 0), ("step", 2), ("step", 4), ("step", 5), ("end", 5)]


def test_period_of_zero_means_never(tmp_path):
    assert run_recorded(tmp_path, every=0)[0] == []


def test_only_the_chief_uses_callbacks_of_the_chief(tmp_path):
    class OfChief(Record):
        chief_only = True

    from igpt_tf.training.loop import TrainingLoop
    from igpt_tf.training.workdir import Workdir
    from tests.training.small_runs import small_trainer

    callbacks = [OfChief(1), Record(1)]
    arguments = (small_trainer(), None, callbacks)
    other = TrainingLoop(Workdir(str(tmp_path), 1), *arguments, num_steps=1, seed=0)
    assert [type(callback) for callback in other._callbacks] == [Record]


def test_resumed_run_takes_the_remaining_steps_and_ends_with_the_same_weights(tmp_path, capsys):
    _, uninterrupted = run_recorded(tmp_path / "uninterrupted")
    with pytest.raises(SystemExit):
        run_recorded(
            tmp_path / "run",
            on_step=lambda step: step == 2 and os.kill(os.getpid(), signal.SIGINT),
        )
    assert "saved at step 3; the same command continues" in capsys.readouterr().err
    shutil.copytree(tmp_path / "run", tmp_path / "again")  # the traceback holds the run's lock
    events, resumed = run_recorded(tmp_path / "again")
    assert "resuming from step 3\n" in capsys.readouterr().out
    assert events == [("begin", 3), ("step", 4), ("step", 5), ("end", 5)]
    for one, other in zip(
        uninterrupted.trainer.model.get_weights(), resumed.trainer.model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_finished_run_takes_no_step(tmp_path):
    run_recorded(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    assert run_recorded(tmp_path / "again")[0] == [("begin", 5), ("end", 5)]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_lets_the_step_end_then_saves_and_exits_with_its_code(tmp_path, number, code):
    record = Record(1, on_step=lambda step: step == 2 and os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as exit_:
        run_loop(tmp_path, [record], poison=False)
    assert exit_.value.code == code
    assert record.events[-2:] == [("step", 3), ("end", 3)]
    assert (tmp_path / "checkpoints/ckpt-3.index").exists()


def test_signal_handlers_are_restored_after_the_loop(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run_recorded(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


class EvaluateAs(Evaluate):
    """The held-out loss is a function of the step."""

    def __init__(self, every, loss):
        super().__init__(every, [])
        self._loss = loss

    def on_step_end(self, loop):
        loop.checkpoints.keep_if_best(loop.step, self._loss(loop.step))


def worsening(patience=5):
    return [EvaluateAs(5, float), SaveCheckpoint(5), StopEarly(5, patience)]


def test_run_that_does_not_improve_ends_early_and_stays_ended(tmp_path):
    _, taken = run_loop(tmp_path / "run", worsening())
    assert taken[-1] == (9, 0)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    assert run_loop(tmp_path / "again", worsening())[1] == []


def test_signal_in_the_step_at_which_a_run_ends_early_is_obeyed(tmp_path):
    def interrupt(step, seed):
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as exit_:
        run_loop(tmp_path, worsening(), on_batch=interrupt)
    assert exit_.value.code == 130
    assert (tmp_path / "checkpoints/ckpt-10.index").exists()


def usual_callbacks():
    return [Progress(5), SaveCheckpoint(5)]


def test_non_finite_loss_ends_the_run_and_names_its_steps(tmp_path):
    with pytest.raises(NonFiniteLoss, match="between steps 10 and 15"):
        run_loop(tmp_path, usual_callbacks())
    assert (tmp_path / "checkpoints/ckpt-10.index").exists()
    assert not (tmp_path / "checkpoints/ckpt-15.index").exists()


def test_rewound_run_takes_other_images_up_to_the_loss_and_then_its_own(tmp_path):
    loop, taken = run_loop(tmp_path, usual_callbacks(), num_rewinds=1)
    assert all(np.isfinite(w).all() for w in loop.trainer.model.get_weights())
    window = dict(taken[taken.index((14, 0)) + 1 :])
    assert {step for step, seed in window.items() if seed} == set(range(10, 15))
    assert {step for step, seed in window.items() if not seed} == set(range(15, 20))
    steps = [json.loads(line)["step"] for line in open(tmp_path / "metrics.jsonl")]
    assert steps == [5, 10, 15, 20]


@pytest.mark.parametrize("step", [POISONED_STEP, 14])  # noticed when saving, or when logging
def test_signal_in_a_lost_step_ends_the_run_where_it_was_rewound_to(tmp_path, step):
    def interrupt(*batch):
        if batch == (step, 0):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as exit_:
        run_loop(tmp_path / "run", usual_callbacks(), num_rewinds=1, on_batch=interrupt)
    assert exit_.value.code == 143
    shutil.copytree(tmp_path / "run", tmp_path / "again")  # the traceback holds the run's lock
    _, taken = run_loop(tmp_path / "again", usual_callbacks(), num_rewinds=1)
    assert taken[0][0] == 10 and taken[0][1] != 0 and taken[-1] == (NUM_STEPS - 1, 0)


def test_resumed_run_knows_the_windows_of_the_one_before(tmp_path):
    path = str(tmp_path / "rewinds.json")
    first = Rewinds(path, limit=2)
    first.add(10, NonFiniteLoss(10, 15))
    first.add(10, NonFiniteLoss(10, 12))
    again = Rewinds(path, limit=2)
    segments = list(again.segments(0, 0, 20))
    assert segments == list(first.segments(0, 0, 20))
    assert [(a, b) for a, b, _ in segments] == [(0, 10), (10, 12), (12, 15), (15, 20)]
    seeds = [seed for _, _, seed in segments]
    assert seeds[0] == seeds[3] == 0 and len(set(seeds)) == 3
    with pytest.raises(NonFiniteLoss):
        again.add(12, NonFiniteLoss(12, 13))


@pytest.mark.parametrize("content", [b"", b"[[10, 1", b"[[10]]", b"[[10, null]]", b"7", b"\xff"])
def test_damaged_windows_are_named_with_the_fix_and_left_alone(tmp_path, content):
    path = tmp_path / "rewinds.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read.*start again.*rewinds.json") as error:
        Rewinds(str(path), limit=2)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content
