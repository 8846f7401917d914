"""Pretrains and probes a grid of models; writes one table and its figures.

python -m tools.study --gin_file=gin/studies/cifar10_8x8.gin --workdir=runs/study [--dry_run]

Finished cells are kept, interrupted ones resume. --jobs=2 runs two cells at a time; --shard=0/4 to
--shard=3/4 divide the cells among four processes of a cluster.
"""

from absl import flags

from igpt_tf import cli, config, runtime

flags.DEFINE_string("workdir", None, "Folder of the study; the same folder again resumes it.")
flags.DEFINE_bool("dry_run", False, "Print the cells and their expected time, run nothing.")
flags.DEFINE_integer("jobs", 1, "Cells that run at the same time.", 1)
flags.DEFINE_string("shard", "0/1", "I/N: run every N-th cell, starting with the I-th.")


def main() -> None:
    """Runs `study` with flags and gin bindings."""
    cli.require_flags("gin_file", "workdir")
    runtime.import_tensorflow()
    from igpt_tf.evaluation.study import study

    config.parse_flags()
    print(study(**cli.flag_values("workdir", "dry_run", "jobs", "shard")))


if __name__ == "__main__":
    cli.run(main)
