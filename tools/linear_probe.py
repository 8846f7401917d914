"""Accuracy of linear classifiers on every layer, beside raw pixels and an untrained network.

python -m tools.linear_probe --saved_model=DIR --workdir=DIR [--layers=5]

Another data set, fewer images, another solver:
  --gin_param='linear_probe.source=@cifar10()' --gin_param='cifar10.directory="data/..."'
  --gin_param='linear_probe.num_train=10000' --gin_file=gin/tools/linear_probe_sgd.gin
"""

import os

import gin
from absl import flags

from igpt_tf import cli, config, runtime

flags.DEFINE_string("saved_model", None, "A SavedModel, or the folder of its versions.")
flags.DEFINE_string("workdir", None, "Where the numbers, the picture and the features go.")
flags.DEFINE_integer("layers", 1, "Also probe so many layers side by side around the best.")


@gin.configurable
def linear_probe(
    *, saved_model, workdir, layers, source=None, solver=None, num_train=None, batch_size=64, seed=0
):
    """See `igpt_tf.evaluation.linear_probe`; `source` and `solver` are built by gin."""
    from igpt_tf import files
    from igpt_tf.evaluation import plots, summary
    from igpt_tf.evaluation.linear_probe import linear_probe as probe
    from igpt_tf.evaluation.probe import LBFGS
    from igpt_tf.savedmodel.load import SavedModel

    config.refuse_unread_bindings()
    result = probe(
        SavedModel(saved_model),
        workdir=files.make_workdir(workdir),
        source=source,
        solver=solver or LBFGS(),
        num_layers=layers,
        num_train=num_train,
        batch_size=batch_size,
        seed=seed,
    )
    files.write_json(os.path.join(workdir, "linear_probe.json"), result)
    plots.accuracy_by_layer(os.path.join(workdir, "linear_probe.png"), result)
    print(summary.of_linear_probe(result))


def main() -> None:
    """Flags -> configuration -> `linear_probe`."""
    cli.require_flags("saved_model", "workdir")
    runtime.import_tensorflow()
    import igpt_tf.evaluation  # noqa: F401 - registers what gin may name

    config.parse_flags()
    flag = flags.FLAGS
    linear_probe(saved_model=flag.saved_model, workdir=flag.workdir, layers=flag.layers)


if __name__ == "__main__":
    cli.run(main)
