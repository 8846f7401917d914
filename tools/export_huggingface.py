"""A SavedModel -> a folder that Hugging Face's ImageGPT classes open.

python -m tools.export_huggingface --saved_model=DIR/export/STEP --workdir=FOLDER
"""

from absl import flags

from igpt_tf import cli, files, runtime

flags.DEFINE_string("saved_model", None, "A SavedModel of this repository.")
flags.DEFINE_string("workdir", None, "The Hugging Face folder to write.")


def main() -> None:
    """Loads, converts, writes."""
    cli.require_flags("saved_model", "workdir")
    files.make_workdir(flags.FLAGS.workdir)
    runtime.import_tensorflow()

    from igpt_tf.convert.huggingface_export import write_huggingface
    from igpt_tf.savedmodel.load import load_model

    flag = flags.FLAGS
    model, palette, _ = load_model(flag.saved_model)
    write_huggingface(model, palette, flag.workdir)
    print(f"ImageGPTForCausalImageModeling, {model.count_params():,} parameters -> {flag.workdir}")


if __name__ == "__main__":
    cli.run(main)
