"""Claims about the baselines a model is measured against."""

import numpy as np

from igpt_tf.training.baselines import token_baselines


def test_knowing_the_position_beats_knowing_the_frequencies_beats_knowing_nothing():
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.choice(4, 4000, p=p) for p in ([0.7, 0.1, 0.1, 0.1], [0, 0, 0.2, 0.8])])
    baselines = token_baselines(tokens.T[:2000], tokens.T[2000:], 4)
    entropies = [-sum(p * np.log(p) for p in row if p) for row in ([0.7] + [0.1] * 3, [0.2, 0.8])]
    assert baselines["uniform"] == np.log(4)
    assert baselines["per_position"] < baselines["unigram"] < baselines["uniform"]
    np.testing.assert_allclose(baselines["per_position"], np.mean(entropies), atol=0.02)


def test_a_token_never_seen_in_training_costs_no_infinity():
    baselines = token_baselines(np.zeros((5, 3), "int32"), np.ones((5, 3), "int32"), 2)
    assert np.isfinite(list(baselines.values())).all()
