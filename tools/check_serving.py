"""Whether TensorFlow Serving could serve a SavedModel, and how fast, without its server.

python -m tools.check_serving --saved_model=DIR [--workdir=DIR]

Loads the folder through TensorFlow's C library, as the server does and without TensorFlow's
Python, asks every signature with requests of its own, and prints what it takes, returns and
costs. Exit code 2 and one line if the model breaks the contract in the README.
"""

import os

from absl import flags

from igpt_tf import cli, files, runtime
from igpt_tf.errors import InputError
from igpt_tf.savedmodel import check_summary as summary
from igpt_tf.savedmodel.check import Check

flags.DEFINE_string("saved_model", None, "A SavedModel, or the folder of its versions.")
flags.DEFINE_string("workdir", None, "Where check_serving.json goes, if anywhere.")


def main() -> None:
    """Flags -> check -> table."""
    cli.require_flags("saved_model")
    workdir = flags.FLAGS.workdir
    if workdir:
        files.make_workdir(workdir)
    found = _check(flags.FLAGS.saved_model)
    if workdir:
        files.write_json(os.path.join(workdir, "check_serving.json"), found)
    print(summary.of_check(found))
    if found["problems"]:
        raise InputError(summary.of_problems(found))


def _check(path: str) -> dict:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with runtime.suppress_stderr():
        check = Check(path)
    try:
        return check.run()
    finally:
        check.close()


if __name__ == "__main__":
    cli.run(main)
