"""Accuracy from a few labels a class, beside raw pixels.

python -m tools.low_data --saved_model=DIR --workdir=DIR [--labels_per_class=4,25,400]

With linear_probe's workdir, its features are used again. The same bindings refine:
  --gin_param='low_data.source=@cifar10()' --gin_param='low_data.num_subsets=5'
"""

import os

import gin
from absl import flags

from igpt_tf import cli, config, runtime

flags.DEFINE_string("saved_model", None, "A SavedModel, or the folder of its versions.")
flags.DEFINE_string("workdir", None, "Where the numbers, the picture and the features go.")
flags.DEFINE_list("labels_per_class", None, "Numbers of labels; 4,25,400 as far as there are.")


@gin.configurable
def low_data(
    *, saved_model, workdir, labels_per_class, source=None, solver=None, num_subsets=5,
    num_train=None, batch_size=64, seed=0,
):  # fmt: skip
    """See `igpt_tf.evaluation.low_data`; `source` and `solver` are built by gin."""
    from igpt_tf import files
    from igpt_tf.evaluation import low_data as library
    from igpt_tf.evaluation import plots, summary
    from igpt_tf.evaluation.probe import LBFGS
    from igpt_tf.savedmodel.load import SavedModel

    config.refuse_unread_bindings()
    result = library.low_data(
        SavedModel(saved_model),
        workdir=files.make_workdir(workdir),
        source=source,
        solver=solver or LBFGS(l2=library.STRENGTHS),
        labels_per_class=library.parse_counts(labels_per_class),
        num_subsets=num_subsets,
        num_train=num_train,
        batch_size=batch_size,
        seed=seed,
    )
    files.write_json(os.path.join(workdir, "low_data.json"), result)
    plots.low_data(os.path.join(workdir, "low_data.png"), result)
    print(summary.of_low_data(result))


def main() -> None:
    """Flags -> configuration -> `low_data`."""
    cli.require_flags("saved_model", "workdir")
    runtime.import_tensorflow()
    import igpt_tf.evaluation  # noqa: F401 - registers what gin may name

    config.parse_flags()
    names = ("saved_model", "workdir", "labels_per_class")
    low_data(**{name: flags.FLAGS[name].value for name in names})


if __name__ == "__main__":
    cli.run(main)
