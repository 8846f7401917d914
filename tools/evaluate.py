"""Nats per token of a SavedModel on a data set, and the surprise at each pixel.

python -m tools.evaluate --saved_model=DIR --workdir=DIR [--split=test]
python -m tools.evaluate --saved_model=DIR --workdir=DIR --tokens=FILE.npy [--num_images=1000]

Another data set: --gin_param='evaluate.source=@cifar10()' --gin_param='cifar10.directory="..."'
"""

from absl import flags

from igpt_tf import cli, config, runtime

flags.DEFINE_string("saved_model", None, "A SavedModel, the folder of its versions, or `digits`.")
flags.DEFINE_string("workdir", None, "Folder for the numbers and the plot.")
flags.DEFINE_string("split", None, "Split of the data set: train, valid (the default) or test.")
flags.DEFINE_string(
    "tokens", None, "A .npy file of tokens int[N,T] or [N,H,W] of the model's palette instead."
)
flags.DEFINE_integer("num_images", None, "Score the first images only (default: all).")


def main() -> None:
    """Runs `evaluate` with flags and gin bindings."""
    cli.require_flags("saved_model", "workdir")
    runtime.import_tensorflow()
    from igpt_tf.evaluation import scores

    config.parse_flags()
    names = ("saved_model", "workdir", "split", "tokens", "num_images")
    print(scores.format_report(scores.evaluate(**cli.flag_values(*names))))


if __name__ == "__main__":
    cli.run(main)
