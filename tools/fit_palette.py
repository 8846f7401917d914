"""A palette for your images: k-means over their colours.

python -m tools.fit_palette --images=FOLDER --workdir=DIR [--num_colours=512]

A data set instead of a folder:
  --gin_param='fit_palette.source=@cifar10()' --gin_param='cifar10.directory="data/..."'
"""

import os

import gin
from absl import flags

from igpt_tf import cli, config, files, runtime

flags.DEFINE_string("images", None, "A folder of PNG and JPEG files, with or without classes.")
flags.DEFINE_integer("image_size", 32, "Images of the folder are shrunk to this size.", 1)
flags.DEFINE_string("workdir", None, "Where palette.npy, palette.json and palette.png go.")
flags.DEFINE_integer("num_colours", 512, "Colours of the palette, the model's vocabulary.", 1)
flags.DEFINE_integer("seed", 0, "Fixes the result.", 0, 2**31 - 1)


@gin.configurable
def fit_palette(*, images, image_size, workdir, num_colours, seed, source=None, num_images=20_000):
    """Fits on `num_images` random training images, measures on the held-out ones."""
    from igpt_tf.evaluation import palettes, summary
    from igpt_tf.image_grid import write_png

    config.refuse_unread_bindings()
    source = palettes.source_of(source, images, image_size)
    palette, result, picture = palettes.fit(
        source, num_colours=num_colours, num_images=num_images, seed=seed
    )
    palette.save(os.path.join(workdir, "palette.npy"))
    files.write_json(os.path.join(workdir, "palette.json"), result)
    write_png(os.path.join(workdir, "palette.png"), picture)
    print(summary.of_palette(result, os.path.join(workdir, "palette.npy")))


def main() -> None:
    """Flags -> configuration -> `fit_palette`."""
    cli.require_flags("workdir")
    files.make_workdir(flags.FLAGS.workdir)
    runtime.import_tensorflow()
    import igpt_tf.evaluation  # noqa: F401 - registers what gin may name

    config.parse_flags()
    names = ("images", "image_size", "workdir", "num_colours", "seed")
    fit_palette(**{name: flags.FLAGS[name].value for name in names})


if __name__ == "__main__":
    cli.run(main)
