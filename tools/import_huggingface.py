"""A Hugging Face ImageGPT folder -> a SavedModel.

python -m tools.import_huggingface --huggingface=FOLDER --workdir=DIR
"""

from absl import flags

from igpt_tf import cli, runtime

flags.DEFINE_string("huggingface", None, "A folder that save_pretrained wrote.")
flags.DEFINE_string("palette", None, "A palette instead of the folder's own, as .npy.")
flags.DEFINE_string("workdir", None, "Where export/0 goes.")

# Such a folder does not tell how long its model was trained.
STEP = 0


def main() -> None:
    """Opens, checks, converts, writes."""
    cli.require_flags("huggingface", "workdir")
    runtime.import_tensorflow()

    from igpt_tf.convert import inventory, publish
    from igpt_tf.convert.huggingface_import import HuggingFaceFolder
    from igpt_tf.palette import Palette

    flag = flags.FLAGS
    folder = HuggingFaceFolder(flag.huggingface)
    palette = Palette.load(flag.palette) if flag.palette else folder.palette()
    inventory.check_palette(len(palette), folder.config["vocabulary_size"])
    publish.destination(flag.workdir, STEP)
    report = publish.publish(
        folder.load(), palette, flag.workdir, step=STEP, source=flag.huggingface
    )
    print(publish.summary(report))


if __name__ == "__main__":
    cli.run(main)
