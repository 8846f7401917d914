"""Fits a palette to your images, by k-means over their colours.

python -m tools.fit_palette --images=FOLDER --workdir=DIR [--num_colours=512]

A data set instead of a folder:
  --gin_param='fit_palette.source=@cifar10()' --gin_param='cifar10.directory="data/..."'
"""

import os

from absl import flags

from igpt_tf import cli, config, runtime

flags.DEFINE_string("images", None, "A folder of images, with or without class folders.")
flags.DEFINE_integer("image_size", None, "Size to which the images are resized (default: 32).", 1)
flags.DEFINE_string("workdir", None, "Folder for palette.npy, palette.json and palette.png.")
flags.DEFINE_integer(
    "num_colours", None, "Number of colours, the model's vocabulary size (default: 512).", 1
)
flags.DEFINE_integer("seed", None, "Random seed of k-means (default: 0).", 0, 2**31 - 1)


def main() -> None:
    """Runs `fit_palette` with flags and gin bindings."""
    cli.require_flags("workdir")
    runtime.import_tensorflow()
    from igpt_tf.evaluation import palette_fitting

    config.parse_flags()
    names = ("images", "image_size", "workdir", "num_colours", "seed")
    report = palette_fitting.fit_palette(**cli.flag_values(*names))
    palette = os.path.join(flags.FLAGS.workdir, "palette.npy")
    print(palette_fitting.format_report(report, palette))


if __name__ == "__main__":
    cli.run(main)
