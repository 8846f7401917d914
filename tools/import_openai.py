"""OpenAI's published checkpoints -> a SavedModel.

python -m tools.import_openai --checkpoint=DIR/model.ckpt-1000000 --palette=kmeans_centers.npy \
  --workdir=DIR
"""

from absl import flags

from igpt_tf import cli, runtime

flags.DEFINE_string("checkpoint", None, "What the names of the checkpoint's files share.")
flags.DEFINE_string("palette", None, "The palette it was trained with: kmeans_centers.npy.")
flags.DEFINE_string("workdir", None, "Where export/STEP goes.")


def main() -> None:
    """Opens, checks, converts, writes."""
    cli.require_flags("checkpoint", "palette", "workdir")
    runtime.import_tensorflow()

    from igpt_tf.convert import inventory, publish
    from igpt_tf.convert.openai import OpenAICheckpoint
    from igpt_tf.palette import Palette

    flag = flags.FLAGS
    palette = Palette.load(flag.palette)
    checkpoint = OpenAICheckpoint(flag.checkpoint)
    inventory.check_palette(len(palette), checkpoint.config["vocabulary_size"])
    publish.destination(flag.workdir, checkpoint.step)
    report = publish.publish(
        checkpoint.load(),
        palette,
        flag.workdir,
        step=checkpoint.step,
        source=checkpoint.path,
        ignored=checkpoint.ignored,
    )
    if report["ignored"]:
        print(f"left behind, not part of the network: {', '.join(report['ignored'])}")
    print(publish.summary(report))


if __name__ == "__main__":
    cli.run(main)
