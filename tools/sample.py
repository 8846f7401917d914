"""Samples of a SavedModel, or completions of images.

python -m tools.sample --saved_model=DIR --workdir=DIR [--num_images=16] [--seed=0] [--animate]
python -m tools.sample --saved_model=DIR --workdir=DIR --num_given=0.5 [--images=FOLDER]

Any of --num_given, --images and --completions asks for completions, half given by default, of the
held-out images of the model's own data set unless --images names others.
"""

import gin
from absl import flags

from igpt_tf import cli, config, runtime

flags.DEFINE_string("saved_model", None, "A SavedModel, or the folder of its versions.")
flags.DEFINE_string("workdir", None, "Where the pictures go.")
flags.DEFINE_integer("num_images", 16, "How many samples, or how many images to complete.")
flags.DEFINE_integer("seed", 0, "Image i is that of seed + i.")
flags.DEFINE_float("temperature", 1.0, "Below 1: safer choices of colours; above: wilder.")
flags.DEFINE_integer("top_k", 0, "Choose among so many best colours; 0 for all.")
flags.DEFINE_float("top_p", 1.0, "Choose among the best colours of so much probability.")
flags.DEFINE_string("num_given", "0.5", "Complete: a share of the image, or a number of rows.")
flags.DEFINE_list("images", None, "Complete these files or folders, half given by default.")
flags.DEFINE_integer("completions", 4, "How many completions of each image.")
flags.DEFINE_integer("batch_size", None, "Images at a time; without, what the memory allows.")
flags.DEFINE_bool("animate", False, "Also write an animation of the pictures being painted.")
flags.DEFINE_bool("jit_compile", False, "Compile with XLA: a slow start, then faster. For many.")

_COMMON = ("num_images", "batch_size", "animate", "jit_compile")
_PARAMS = ("seed", "temperature", "top_k", "top_p")


@gin.configurable
def sample(*, saved_model, workdir, complete, params, common, source=None):
    """See `igpt_tf.evaluation.gallery`; `source` is built by gin."""
    from igpt_tf.evaluation import gallery
    from igpt_tf.sampling.params import SamplingParams

    config.refuse_unread_bindings()
    arguments = {**common, "params": SamplingParams(**params)}
    if complete is None:
        print(gallery.write_samples(saved_model, workdir, **arguments))
    else:
        arguments |= {"source": source, **complete}
        print(gallery.write_completions(saved_model, workdir, **arguments))


def main() -> None:
    """Flags -> configuration -> `sample`."""
    cli.require_flags("saved_model", "workdir")
    runtime.import_tensorflow()
    if not flags.FLAGS.jit_compile:  # XLA shares out its own work
        runtime.use_one_thread_per_op()
    import igpt_tf.evaluation  # noqa: F401 - registers what gin may name

    config.parse_flags()
    flag = flags.FLAGS
    names = ("num_given", "images", "completions")
    complete = {name: flag[name].value for name in names}
    sample(
        complete=complete if any(flag[name].present for name in names) else None,
        params={name: flag[name].value for name in _PARAMS},
        common={name: flag[name].value for name in _COMMON},
        saved_model=flag.saved_model,
        workdir=flag.workdir,
    )


if __name__ == "__main__":
    cli.run(main)
