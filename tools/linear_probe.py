"""Accuracy of linear classifiers on every layer, beside raw pixels and an untrained network.

python -m tools.linear_probe --saved_model=DIR --workdir=DIR [--layers=5]

Another data set, fewer images, another solver:
  --gin_param='linear_probe.source=@cifar10()' --gin_param='cifar10.directory="data/..."'
  --gin_param='linear_probe.num_train=10000' --gin_file=gin/tools/linear_probe_sgd.gin
"""

from absl import flags

from igpt_tf import cli, config, runtime

flags.DEFINE_string("saved_model", None, "A SavedModel, the folder of its versions, or `digits`.")
flags.DEFINE_string("workdir", None, "Folder for the numbers, the plot and the features.")
flags.DEFINE_integer(
    "layers", None, "Also probe this many layers, concatenated, around the best one."
)


def main() -> None:
    """Runs `linear_probe` with flags and gin bindings."""
    cli.require_flags("saved_model", "workdir")
    runtime.import_tensorflow()
    from igpt_tf.evaluation import linear_probe

    config.parse_flags()
    report = linear_probe.linear_probe(**cli.flag_values("saved_model", "workdir", "layers"))
    print(linear_probe.format_report(report))


if __name__ == "__main__":
    cli.run(main)
