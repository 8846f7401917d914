"""Accuracy of linear classifiers fitted on a few labels per class, beside raw pixels.

python -m tools.low_data --saved_model=DIR --workdir=DIR [--labels_per_class=4,25,400]

With the workdir of linear_probe, the features stored there are reused. Bindings:
  --gin_param='low_data.source=@cifar10()' --gin_param='low_data.num_subsets=5'
"""

from absl import flags

from igpt_tf import cli, config, runtime

flags.DEFINE_string("saved_model", None, "A SavedModel, the folder of its versions, or `digits`.")
flags.DEFINE_string("workdir", None, "Folder for the numbers, the plot and the features.")
flags.DEFINE_list(
    "labels_per_class", None, "Labels per class (default: those of 4,25,400 that the data allow)."
)


def main() -> None:
    """Runs `low_data` with flags and gin bindings."""
    cli.require_flags("saved_model", "workdir")
    runtime.import_tensorflow()
    from igpt_tf.evaluation import low_data

    config.parse_flags()
    arguments = cli.flag_values("saved_model", "workdir", "labels_per_class")
    if "labels_per_class" in arguments:
        arguments["labels_per_class"] = low_data.parse_labels_per_class(
            arguments["labels_per_class"]
        )
    print(low_data.format_report(low_data.low_data(**arguments)))


if __name__ == "__main__":
    cli.run(main)
