"""Claims about the loop: order, periods, and a clean end on a signal."""

import itertools
import os
import signal

import pytest

from igpt_tf.training.loop import Periodic, Stop, run


def run_noting(first_step=0, num_steps=5, every=2, on_step=lambda step: None):
    events = []

    def train_step(batch, waited):
        assert waited >= 0
        events.append(("step", batch))
        on_step(batch)

    try:
        with Stop() as stop:
            run(
                train_step,
                itertools.count(first_step + 1),
                first_step=first_step,
                num_steps=num_steps,
                actions=[
                    Periodic(every, lambda step: events.append(("report", step))),
                    Periodic(0, lambda step: events.append(("never", step))),
                ],
                save=lambda step: events.append(("save", step)),
                stop=stop,
            )
    except SystemExit as end:
        events.append(("exit", end.code))
    return events


def test_an_action_follows_every_period_and_the_last_step():
    reports = [step for kind, step in run_noting() if kind == "report"]
    assert reports == [2, 4, 5]


def test_a_period_of_zero_means_never():
    assert "never" not in {kind for kind, _ in run_noting()}


def test_a_resumed_loop_takes_the_remaining_steps_with_the_same_periods():
    assert run_noting(first_step=3) == run_noting()[-4:]


def test_a_finished_run_takes_no_step():
    assert run_noting(first_step=5) == []


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_end_saves_and_exits_with_its_code(number, code):
    events = run_noting(on_step=lambda step: step == 3 and os.kill(os.getpid(), number))
    assert events[-2:] == [("save", 3), ("exit", code)]
    assert ("step", 4) not in events


def test_signals_are_the_callers_again_after_the_loop():
    before = signal.getsignal(signal.SIGTERM)
    run_noting()
    assert signal.getsignal(signal.SIGTERM) is before
