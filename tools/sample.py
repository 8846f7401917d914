"""Samples of a SavedModel, completions of images, or in-paintings by a masked model.

python -m tools.sample --saved_model=DIR --workdir=DIR [--num_images=16] [--seed=0] [--animate]
python -m tools.sample --saved_model=DIR --workdir=DIR --num_given=0.5 [--images=FOLDER]
python -m tools.sample --saved_model=DIR --workdir=DIR --known=MASK.png [--images=FOLDER]

--num_given, --known, --images and --completions each ask for completions, by default with the upper
half given. Held-out images of the model's data set are completed, unless --images names others.
"""

from absl import flags

from igpt_tf import cli, config, runtime

flags.DEFINE_string("saved_model", None, "A SavedModel, the folder of its versions, or `digits`.")
flags.DEFINE_string("workdir", None, "Folder for the pictures.")
flags.DEFINE_integer("num_images", None, "Images to sample, or at most to complete (default: 16).")
flags.DEFINE_integer("seed", 0, "Image i is generated with seed + i.")
flags.DEFINE_float("temperature", 1.0, "Divisor of the logits; below 1 less diverse, above more.")
flags.DEFINE_integer("top_k", 0, "Sample from this many most likely colours; 0 for all.")
flags.DEFINE_float("top_p", 1.0, "Sample from the most likely colours of this total probability.")
flags.DEFINE_string("num_given", None, "Complete: share of the rows to keep, or number of rows.")
flags.DEFINE_string(
    "known", None, "In-paint: an image file; bright pixels are kept, dark ones filled."
)
flags.DEFINE_integer("num_rounds", None, "Rounds of in-painting with --known (default: 8).")
flags.DEFINE_multi_string(
    "images", None, "Complete the images of this file or folder; may be repeated."
)
flags.DEFINE_integer("completions", None, "Completions per image (default: 4).")
flags.DEFINE_integer("batch_size", None, "Images at a time (default: up to 16, as memory allows).")
flags.DEFINE_bool("animate", None, "Also write an animation of the images being generated.")
flags.DEFINE_bool("jit_compile", None, "Compile with XLA: a slow start, then faster.")

_NAMES = (
    "saved_model", "workdir", "num_images", "images", "num_given", "known", "num_rounds",
    "completions", "batch_size", "animate", "jit_compile",
)  # fmt: skip


def main() -> None:
    """Runs `sample` with flags and gin bindings."""
    cli.require_flags("saved_model", "workdir")
    runtime.import_tensorflow()
    if not flags.FLAGS.jit_compile:  # XLA distributes its work itself
        runtime.use_one_thread_per_op()
    from igpt_tf.evaluation import galleries
    from igpt_tf.sampling.params import SamplingParams

    config.parse_flags()
    params = SamplingParams(**cli.flag_values("seed", "temperature", "top_k", "top_p"))
    print(galleries.sample(params=params, **cli.flag_values(*_NAMES)))


if __name__ == "__main__":
    cli.run(main)
