"""What the demo says at its end."""

import json
import os

from igpt_tf.evaluation import summary
from igpt_tf.formatting import table

_BASELINES = {
    "uniform": "every colour alike",
    "unigram": "how often each colour occurs",
    "per_position": "how often at each pixel",
}


def of(workdir: str) -> str:
    """The numbers of a run, its probe and its samples, and how to look at each.

    Args:
        workdir: The run's folder, with `linear_probe/` and `sample/` in it.
    """
    result = _read(workdir, "result.json")
    probe = _read(workdir, "linear_probe", "linear_probe.json")
    saved_model = os.path.join(workdir, result["export"])
    return "\n\n".join(
        [
            _losses(result),
            summary.of_linear_probe(probe),
            f"samples      {os.path.join(workdir, 'sample', 'samples.png')}\n"
            f"probe        {os.path.join(workdir, 'linear_probe', 'linear_probe.png')}\n"
            f"TensorBoard  .venv/bin/tensorboard --logdir {workdir}\n"
            f"SavedModel   {saved_model}\n"
            f'             .venv/bin/python -c "import tensorflow as tf; '
            f"print(tf.saved_model.load('{saved_model}').signatures)\"",
        ]
    )


def _losses(result: dict) -> str:
    model = f"this model (step {result['step']} of the run)"
    rows = [[model, f"{result['nats_per_token']['valid']:.3f}"]]
    for name, title in _BASELINES.items():
        rows.append([f"{name.replace('_', ' ')}: {title}", f"{result['baselines'][name]:.3f}"])
    return "\n" + table(["predictor of held-out images", "nats/token"], rows)


def _read(*names: str) -> dict:
    with open(os.path.join(*names), encoding="utf-8") as file:
        return json.load(file)
