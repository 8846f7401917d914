"""Imports a Hugging Face ImageGPT folder as a SavedModel.

python -m tools.import_huggingface --huggingface=FOLDER --workdir=DIR
"""

from absl import flags

from igpt_tf import cli, runtime

flags.DEFINE_string("huggingface", None, "A folder that save_pretrained wrote.")
flags.DEFINE_string("palette", None, "A palette (.npy) to use instead of the folder's own.")
flags.DEFINE_string("workdir", None, "Folder of export/0.")


def main() -> None:
    """Runs `import_huggingface` with flags."""
    cli.require_flags("huggingface", "workdir")
    runtime.import_tensorflow()
    from igpt_tf.convert import imported_model
    from igpt_tf.convert.huggingface_import import import_huggingface

    report = import_huggingface(**cli.flag_values("huggingface", "palette", "workdir"))
    print(imported_model.format_report(report))


if __name__ == "__main__":
    cli.run(main)
