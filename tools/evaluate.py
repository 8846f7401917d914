"""Nats per token of a SavedModel on a data set, and where in the image they fall.

python -m tools.evaluate --saved_model=DIR --workdir=DIR [--split=test]
python -m tools.evaluate --saved_model=DIR --workdir=DIR --tokens=FILE.npy [--num_images=1000]

Another data set: --gin_param='evaluate.source=@cifar10()' --gin_param='cifar10.directory="..."'
"""

import os

import gin
from absl import flags

from igpt_tf import cli, config, files, runtime

flags.DEFINE_string("saved_model", None, "A SavedModel, or the folder of its versions.")
flags.DEFINE_string("workdir", None, "Where the numbers and the picture go.")
flags.DEFINE_string("split", "valid", "The part of the data set: train, valid or test.")
flags.DEFINE_string(
    "tokens", None, "A .npy file of tokens int[N,T] or [N,H,W] in the model's palette instead."
)
flags.DEFINE_integer("num_images", None, "Score the first so many only; without, all.")


@gin.configurable
def evaluate(*, saved_model, workdir, split, tokens, num_images, source=None, batch_size=32):
    """See `igpt_tf.evaluation.evaluation`; `source` is built by gin."""
    from igpt_tf.evaluation import evaluation, plots, summary
    from igpt_tf.savedmodel.load import SavedModel

    config.refuse_unread_bindings()
    result, surprise = evaluation.evaluate(
        SavedModel(saved_model),
        source=source,
        split=split,
        tokens=tokens,
        num_images=num_images,
        batch_size=batch_size,
    )
    files.write_json(os.path.join(workdir, "evaluate.json"), result)
    plots.surprise(os.path.join(workdir, "evaluate.png"), surprise, summary.title(result))
    print(summary.of_evaluation(result))


def main() -> None:
    """Flags -> configuration -> `evaluate`."""
    cli.require_flags("saved_model", "workdir")
    files.make_workdir(flags.FLAGS.workdir)
    runtime.import_tensorflow()
    import igpt_tf.evaluation  # noqa: F401 - registers what gin may name

    config.parse_flags()
    names = ("saved_model", "workdir", "split", "tokens", "num_images")
    evaluate(**{name: flags.FLAGS[name].value for name in names})


if __name__ == "__main__":
    cli.run(main)
