"""Accuracy of a Wide ResNet trained from scratch, on all labels and on a few per class.

python -m tools.supervised_baseline --saved_model=DIR --workdir=DIR [--labels_per_class=4,25,400]

The data set, split and image size are those of the model. A data set without a model, another
network, augmentation:
  --gin_param='supervised_baseline.source=@digits()' --gin_param='wide_resnet.width=2'
  --gin_file=gin/tools/supervised_baseline_cifar10.gin
"""

from absl import flags

from igpt_tf import cli, config, runtime

flags.DEFINE_string("saved_model", None, "Use the data set of this SavedModel.")
flags.DEFINE_string("workdir", None, "Folder for the numbers.")
flags.DEFINE_list("labels_per_class", None, "Also train on this many labels, e.g. 4,25,400.")


def main() -> None:
    """Runs `supervised_baseline` with flags and gin bindings."""
    cli.require_flags("workdir")
    runtime.import_tensorflow()
    from igpt_tf.evaluation import supervised_baseline
    from igpt_tf.evaluation.low_data import parse_labels_per_class

    config.parse_flags()
    arguments = cli.flag_values("saved_model", "workdir", "labels_per_class")
    if "labels_per_class" in arguments:
        arguments["labels_per_class"] = parse_labels_per_class(arguments["labels_per_class"])
    report = supervised_baseline.supervised_baseline(**arguments)
    print(supervised_baseline.format_report(report))


if __name__ == "__main__":
    cli.run(main)
