"""One HTML page about a run, finished or not; opens without a network.

python -m tools.report --workdir=RUN [--include=DIR ...]

Writes RUN/report.html: what was run, curves, pictures, throughput, a model card, and what
linear_probe, low_data, finetune, evaluate and sample wrote in sub-folders of RUN, in an included
folder or in sub-folders of that.
"""

from absl import flags

from igpt_tf import cli
from igpt_tf.report import write_page

flags.DEFINE_string("workdir", None, "The folder of a run of igpt_tf.main or tools.finetune.")
flags.DEFINE_multi_string("include", [], "More folders with results of tools; may be repeated.")


def main() -> None:
    """Flags -> the page."""
    cli.require_flags("workdir")
    print(write_page(flags.FLAGS.workdir, flags.FLAGS.include))


if __name__ == "__main__":
    cli.run(main)
