"""Exports a SavedModel as a folder that Hugging Face's ImageGPT classes open, with a model card.

python -m tools.export_huggingface --saved_model=DIR/export --workdir=FOLDER [--license=mit]
"""

from absl import flags

from igpt_tf import cli, runtime

flags.DEFINE_string("saved_model", None, "A SavedModel, the folder of its versions, or `digits`.")
flags.DEFINE_string("workdir", None, "The Hugging Face folder to write.")
flags.DEFINE_string("license", None, "Licence of the weights for the model card, e.g. cc-by-4.0.")


def main() -> None:
    """Runs `export_huggingface` with flags."""
    cli.require_flags("saved_model", "workdir")
    runtime.import_tensorflow()
    from igpt_tf.convert.huggingface_export import export_huggingface

    print(export_huggingface(**cli.flag_values("saved_model", "workdir", "license")))


if __name__ == "__main__":
    cli.run(main)
