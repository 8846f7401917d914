"""Claims about going on after a loss that blew up."""

import json
import os
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive
from igpt_tf.palette import Palette
from igpt_tf.training import loop, running
from igpt_tf.training.actions import Intervals
from igpt_tf.training.rewinds import NonFiniteLoss, Rewinds
from igpt_tf.training.trainer import Trainer
from igpt_tf.training.workdir import Workdir

POISONED_STEP = 13  # counted from 0, of seed 0 only
NUM_STEPS = 20


class FragileTrainer(Trainer):
    """Its weights are lost to the batch that is marked, as to an overflow."""

    def train_step(self, batch):
        loss = super().train_step({"tokens": batch["tokens"]})
        if batch["poisoned"]:
            self.model.set_weights([w * np.nan for w in self.model.get_weights()])
        return loss


def fragile_trainer():
    keras.utils.set_random_seed(0)
    shape = {"image_size": (3, 3), "vocabulary_size": 5, "num_layers": 1, "hidden_dim": 8}
    model = ImageGPT(**shape, num_heads=2, causal=True)
    return FragileTrainer(
        model, Autoregressive(), keras.optimizers.Adam(0.01), Palette.grey(5), batch_size=4
    )


def run(workdir, num_rewinds, on_batch=lambda step, seed: None, **options):
    """Trains; returns the trainer and the (step, seed) of every batch it was fed."""
    trainer, fed = fragile_trainer(), []

    def batches(first_step, seed):
        for step in range(first_step, NUM_STEPS):
            fed.append((step, seed))
            on_batch(step, seed)
            tokens = np.random.default_rng([seed, step]).integers(0, 5, (4, 9))
            poisoned = seed == 0 and step == POISONED_STEP
            yield {"tokens": tf.constant(tokens, "int32"), "poisoned": poisoned}

    running.take_steps(
        Workdir(str(workdir), 0),
        trainer,
        batches,
        Intervals(log_every=5, evaluate_every=5, checkpoint_every=5),
        num_steps=NUM_STEPS,
        seed=0,
        num_rewinds=num_rewinds,
        **{"actions": lambda checkpoints, summaries: [], **options},
    )
    return trainer, fed


def test_a_lost_loss_ends_the_run_and_names_its_steps(tmp_path):
    with pytest.raises(NonFiniteLoss, match="between steps 10 and 15"):
        run(tmp_path, num_rewinds=0)
    assert (tmp_path / "checkpoints/ckpt-10.index").exists()
    assert not (tmp_path / "checkpoints/ckpt-15.index").exists()


def test_a_rewound_run_takes_other_images_up_to_where_it_was_lost_and_then_its_own(tmp_path):
    trainer, fed = run(tmp_path, num_rewinds=1)
    assert all(np.isfinite(w).all() for w in trainer.model.get_weights())
    window = dict(fed[fed.index((14, 0)) + 1 :])
    assert {step for step, seed in window.items() if seed} == set(range(10, 15))
    assert {step for step, seed in window.items() if not seed} == set(range(15, 20))
    steps = [json.loads(line)["step"] for line in open(tmp_path / "metrics.jsonl")]
    assert steps == [5, 10, 15, 20]


@pytest.mark.parametrize("step", [POISONED_STEP, 14])  # a save notices, or a report
def test_a_signal_in_a_step_that_is_lost_ends_the_run_where_it_was_rewound_to(tmp_path, step):
    def interrupt(*batch):
        if batch == (step, 0):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        run(tmp_path / "run", num_rewinds=1, on_batch=interrupt)
    assert end.value.code == 143
    shutil.copytree(tmp_path / "run", tmp_path / "again")  # the run's is locked, by its traceback
    _, fed = run(tmp_path / "again", num_rewinds=1)
    assert fed[0][0] == 10 and fed[0][1] != 0 and fed[-1] == (19, 0)


def test_a_signal_in_the_step_at_which_a_run_ends_early_is_heeded_too(tmp_path):
    def evaluate(checkpoints, summaries):
        return [loop.Periodic(5, lambda step: checkpoints.note_heldout(step, float(step)))]

    def interrupt(step, seed):
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as end:
        run(tmp_path, num_rewinds=0, on_batch=interrupt, actions=evaluate, patience=5)
    assert end.value.code == 130
    assert (tmp_path / "checkpoints/ckpt-10.index").exists()


def test_a_resumed_run_knows_the_windows_of_the_one_before(tmp_path):
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


@pytest.mark.parametrize("content", [b"[[10, 1", b"[[10]]", b"[[10, null]]", b"7", b"\xff"])
def test_damaged_windows_are_named_with_their_mend_and_left_alone(tmp_path, content):
    path = tmp_path / "rewinds.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged.*start again.*rewinds.json") as refusal:
        Rewinds(str(path), limit=2)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == content
