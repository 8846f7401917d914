"""Tests of the baselines."""

import numpy as np

from igpt_tf.training.baselines import token_baselines


def test_per_position_beats_unigram_beats_uniform():
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.choice(4, 4000, p=p) for p in ([0.7, 0.1, 0.1, 0.1], [0, 0, 0.2, 0.8])])
    baselines = token_baselines(tokens.T[:2000], tokens.T[2000:], 4)
    entropies = [-sum(p * np.log(p) for p in row if p) for row in ([0.7] + [0.1] * 3, [0.2, 0.8])]
    assert baselines["uniform"] == np.log(4)
    assert baselines["per_position"] < baselines["unigram"] < baselines["uniform"]
    np.testing.assert_allclose(baselines["per_position"], np.mean(entropies), atol=0.02)


def test_unseen_token_has_a_finite_loss():
    baselines = token_baselines(np.zeros((5, 3), "int32"), np.ones((5, 3), "int32"), 2)
    assert np.isfinite(list(baselines.values())).all()
