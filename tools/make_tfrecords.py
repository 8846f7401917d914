"""Writes any data set as TFRecord shards, for sets that do not fit into memory.

python -m tools.make_tfrecords --gin_file=gin/datasets/image_folder.gin --workdir=data/shards \
    [--gin_param='image_folder.directory="FOLDER"'] [--images_per_shard=8192]

Started again after an interruption, it continues. gin/datasets/tfrecords.gin trains on the shards.
"""

import gin
from absl import flags

from igpt_tf import cli, config, runtime
from igpt_tf.errors import InputError

flags.DEFINE_string("workdir", None, "Folder of the shards and index.json.")
flags.DEFINE_integer(
    "images_per_shard", 8192, "Images per shard; the last one of a split may hold fewer.", 1
)


@gin.configurable
def make_tfrecords(*, workdir, images_per_shard, source=None):
    """Writes `source`, built by gin, with `tfrecords.write_shards`, and prints its splits."""
    from tqdm import tqdm

    from igpt_tf.data.tfrecords import write_shards

    if source is None:
        raise InputError("no data set is named; give one, such as --gin_file=gin/datasets/NAME.gin")
    index = write_shards(
        source,
        workdir,
        images_per_shard=images_per_shard,
        watch=lambda names: tqdm(names, "shards"),
    )
    for split, shards in index.parts.items():
        megabytes = sum(shard.bytes for shard in shards) / 1e6
        images = sum(shard.images for shard in shards)
        print(f"{split}: {images:,} images in {len(shards):,} shards, {megabytes:,.1f} MB")


def main() -> None:
    """Flags -> configuration -> `make_tfrecords`."""
    cli.require_flags("workdir")
    runtime.import_tensorflow()
    # Registers what gin may name: the files of data sets bind `train.source`.
    import igpt_tf.training.train  # noqa: F401

    config.parse_flags()
    flag = flags.FLAGS
    config.copy_bindings("train", "make_tfrecords", ("source",))
    make_tfrecords(workdir=flag.workdir, images_per_shard=flag.images_per_shard)


if __name__ == "__main__":
    cli.run(main)
