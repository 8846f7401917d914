"""Fine-tunes a pretrained model to tell classes, and exports a model that does.

python -m tools.finetune --saved_model=DIR --workdir=DIR [--from_scratch]

The recipe is gin/tools/finetune.gin, refined by gin/tools/finetune_NAME.gin where there is one for
the model's data set, or by the files given:
  --gin_file=gin/tools/finetune_cifar10.gin --gin_param='finetune.learning_rates=[0.0003]'
  --gin_param='joint.generative_weight=0.0'
The same command again resumes the run.
"""

import os

from absl import flags

from igpt_tf import config, exported, program

flags.DEFINE_string("saved_model", None, "A SavedModel, or the folder of its versions.")
flags.DEFINE_string("workdir", None, "Folder of the run; the same folder again resumes it.")
flags.DEFINE_bool("from_scratch", False, "Fresh weights in the model's shape, for comparison.")

RECIPES = os.path.join("gin", "tools")


def main() -> None:
    """Flags -> configuration -> `finetune`."""
    program.require_flags("saved_model", "workdir")
    flag = flags.FLAGS
    saved_model = exported.find(flag.saved_model)
    data = exported.read_metadata(saved_model).get("data")

    program.import_tensorflow()
    from igpt_tf.downstream.finetune import finetune

    # As bindings, so that they are part of the configuration that a workdir belongs to.
    own = [
        f"finetune.saved_model = {saved_model!r}",
        f"finetune.from_scratch = {flag.from_scratch}",
    ]
    config.parse([*recipes(data, flag.gin_file)], [*own, *flag.gin_param])
    finetune(workdir=flag.workdir)


def recipes(data: dict | None, given: list[str]) -> list[str]:
    """The gin files to parse: what every fine-tuning has in common, then those `given`.

    Args:
        data: Description of the data set the model was trained on, or None.
        given: If none, the file for that data set is taken where there is one.
    """
    common = os.path.join(RECIPES, "finetune.gin")
    own = os.path.join(RECIPES, f"finetune_{data['name']}.gin") if data else ""
    return [common, *(given or ([own] if os.path.exists(own) else []))]


if __name__ == "__main__":
    program.run(main)
