"""Imports a checkpoint published by OpenAI as a SavedModel.

python -m tools.import_openai --checkpoint=DIR/model.ckpt-1000000 --palette=kmeans_centers.npy \
  --workdir=DIR
"""

from absl import flags

from igpt_tf import cli, runtime

flags.DEFINE_string("checkpoint", None, "Checkpoint prefix, e.g. DIR/model.ckpt-1000000.")
flags.DEFINE_string("palette", None, "The palette it was trained with: kmeans_centers.npy.")
flags.DEFINE_string("workdir", None, "Folder of export/STEP.")


def main() -> None:
    """Runs `import_openai` with flags."""
    names = ("checkpoint", "palette", "workdir")
    cli.require_flags(*names)
    runtime.import_tensorflow()
    from igpt_tf.convert import imported_model
    from igpt_tf.convert.openai_checkpoint import import_openai

    print(imported_model.format_report(import_openai(**cli.flag_values(*names))))


if __name__ == "__main__":
    cli.run(main)
