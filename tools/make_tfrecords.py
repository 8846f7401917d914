"""Any data set as TFRecord shards, for sets that memory does not hold.

python -m tools.make_tfrecords --gin_file=gin/datasets/image_folder.gin --workdir=data/shards \
    [--gin_param='image_folder.directory="FOLDER"'] [--images_per_shard=8192]

Started again after an interruption it goes on. Train on them with gin/datasets/tfrecords.gin.
"""

import gin
from absl import flags

from igpt_tf import cli, config, runtime
from igpt_tf.errors import InputError

flags.DEFINE_string("workdir", None, "Where the shards and index.json go.")
flags.DEFINE_integer("images_per_shard", 8192, "The last shard of a part may hold fewer.", 1)


@gin.configurable
def make_tfrecords(*, workdir, images_per_shard, source=None):
    """See `igpt_tf.data.shards`; `source` is built by gin."""
    from tqdm import tqdm

    from igpt_tf.data import shards

    if source is None:
        raise InputError("which images? Name a data set, such as --gin_file=gin/datasets/NAME.gin")
    index = shards.write(
        source, workdir, images_per_shard=images_per_shard, watch=lambda plan: tqdm(plan, "shards")
    )
    for part, written in index["parts"].items():
        size = sum(shard.bytes for shard in written) / 1e6
        images = sum(shard.images for shard in written)
        print(f"{part}: {images:,} images in {len(written):,} shards, {size:,.1f} MB")


def main() -> None:
    """Flags -> configuration -> `make_tfrecords`."""
    cli.require_flags("workdir")
    runtime.import_tensorflow()
    # Registers what gin may name: data set files speak to `train`.
    import igpt_tf.training.train  # noqa: F401

    config.parse_flags()
    flag = flags.FLAGS
    config.copy_bindings("train", "make_tfrecords", ("source",))
    make_tfrecords(workdir=flag.workdir, images_per_shard=flag.images_per_shard)


if __name__ == "__main__":
    cli.run(main)
