"""Writes one HTML page about a run, finished or not, that opens without a network.

python -m tools.report --workdir=RUN [--include=DIR ...]

The page is RUN/report.html: what was run, curves, sample images, throughput, a model card, and what
linear_probe, low_data, finetune, evaluate and sample wrote into subfolders of RUN, into an included
folder or into its subfolders.
"""

from absl import flags

from igpt_tf import cli
from igpt_tf.report.page import write_report

flags.DEFINE_string("workdir", None, "The folder of a run of igpt_tf.main or tools.finetune.")
flags.DEFINE_multi_string("include", [], "More folders with results of tools; may be repeated.")


def main() -> None:
    """Passes the flags to `write_report`."""
    cli.require_flags("workdir")
    print(write_report(flags.FLAGS.workdir, flags.FLAGS.include))


if __name__ == "__main__":
    cli.run(main)
