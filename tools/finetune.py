"""Fine-tunes a pretrained model as a classifier, and exports it.

python -m tools.finetune --saved_model=DIR --workdir=DIR [--from_scratch]

The recipe is gin/tools/finetune.gin, refined by gin/tools/finetune_NAME.gin where there is one for
the model's data set, or by the files given:
  --gin_file=gin/tools/finetune_cifar10.gin --gin_param='finetune.learning_rates=[0.0003]'
  --gin_param='joint.generative_weight=0.0'
The same command again resumes the run.
"""

from absl import flags

from igpt_tf import cli, config, runtime
from igpt_tf.savedmodel import metadata as exported

flags.DEFINE_string("saved_model", None, "A SavedModel, the folder of its versions, or `digits`.")
flags.DEFINE_string("workdir", None, "Folder of the run; the same folder again resumes it.")
flags.DEFINE_bool("from_scratch", False, "Start from random weights, for comparison.")


def main() -> None:
    """Flags -> configuration -> `finetune`."""
    cli.require_flags("saved_model", "workdir")
    flag = flags.FLAGS
    saved_model = exported.find(flag.saved_model)
    data = exported.read_metadata(saved_model).get("data")

    runtime.import_tensorflow()
    from igpt_tf.evaluation.finetune import finetune

    # As bindings, so that they are part of the configuration that a workdir belongs to.
    own = [
        f"finetune.saved_model = {saved_model!r}",
        f"finetune.from_scratch = {flag.from_scratch}",
    ]
    config.parse(config.recipes("finetune", data, flag.gin_file), [*own, *flag.gin_param])
    if not config.bound("step_options.jit_compile"):  # XLA divides the work itself
        runtime.use_one_thread_per_op()
    finetune(workdir=flag.workdir)


if __name__ == "__main__":
    cli.run(main)
