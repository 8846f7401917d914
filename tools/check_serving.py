"""Checks whether TensorFlow Serving could serve a SavedModel, and how fast, without its server.

python -m tools.check_serving --saved_model=DIR [--workdir=DIR]

Loads the folder through TensorFlow's C library, as the server does, runs every signature and prints
inputs, outputs and times. Exit code 2 and one line if the model does not meet the specification in
the README's section "The SavedModel".
"""

import os

from absl import flags

from igpt_tf import cli, files, runtime
from igpt_tf.errors import InputError
from igpt_tf.savedmodel.check import check_saved_model, format_problems, format_report

flags.DEFINE_string("saved_model", None, "A SavedModel, the folder of its versions, or `digits`.")
flags.DEFINE_string("workdir", None, "Folder for check_serving.json (default: not written).")


def main() -> None:
    """Flags -> check -> table."""
    cli.require_flags("saved_model")
    workdir = flags.FLAGS.workdir
    if workdir:
        files.make_workdir(workdir)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with runtime.suppress_stderr():
        report = check_saved_model(flags.FLAGS.saved_model)
    if workdir:
        files.write_json(os.path.join(workdir, "check_serving.json"), report)
    print(format_report(report))
    if report["problems"]:
        raise InputError(format_problems(report))


if __name__ == "__main__":
    cli.run(main)
