"""Pretrains Image GPT: `python -m igpt_tf.main --gin_file=gin/runs/NAME.gin --workdir=DIR`."""

from absl import flags

from igpt_tf import cli, config, runtime

flags.DEFINE_string("workdir", None, "Folder of the run; the same folder again resumes it.")
flags.DEFINE_bool("dry_run", False, "Build everything, print the plan, train nothing.")


def main() -> None:
    """Flags -> configuration -> `train`."""
    cli.require_flags("gin_file")
    if not flags.FLAGS.dry_run:
        cli.require_flags("workdir")

    # Imported late, so that a mistyped flag is reported without waiting for TensorFlow.
    runtime.import_tensorflow()
    from igpt_tf.savedmodel.metadata import find, read_metadata
    from igpt_tf.training.train import train

    config.parse_flags()
    if not config.bound("step_options.jit_compile"):  # XLA divides the work itself
        runtime.use_one_thread_per_op()  # before `find`, which may write a SavedModel
    initial_model = config.bound("train.initial_model")
    if isinstance(initial_model, str):  # refused before gin builds the source of the images
        read_metadata(find(initial_model))
    train(workdir=flags.FLAGS.workdir, dry_run=flags.FLAGS.dry_run)


if __name__ == "__main__":
    cli.run(main)
