"""Compiles a training step or sampling for a TPU or GPU that this machine does not have.

python -m tools.compile --gin_file=gin/runs/imagenet32_s_ar.gin --target=h100 --batch_size=64

Prints the memory per device, the arithmetic, the memory traffic and a bound on the time of a
training step with and without remat, or, with --program=sampling, of sampling new images. Needs
requirements-compile.txt (`make compile` installs it) and no data. --search_batch looks for the
largest batch that fits. --chips=16 --sharded compiles the Keras layers on JAX for a slice over
which weights and optimizer state are divided.
"""

import os

from absl import flags

from igpt_tf import cli, config, files, runtime
from igpt_tf.ahead_of_time import compilers, targets
from igpt_tf.errors import InputError

flags.DEFINE_string("target", None, f"Device to compile for: {', '.join(targets.names())}.")
flags.DEFINE_integer("batch_size", None, "Images per step of all chips (default: the run's).", 1)
flags.DEFINE_enum("program", "training", ["training", "sampling"], "What is compiled.")
flags.DEFINE_integer("chips", 1, "Number of devices.", 1)
flags.DEFINE_bool("sharded", False, "Divide weights and optimizer state over the devices.")
flags.DEFINE_enum("remat", "both", ["both", "off", "on"], "Settings of build_model.remat.")
flags.DEFINE_bool("search_batch", False, "Look for the largest batch that fits.")
flags.DEFINE_integer("image_size", None, "Height and width, if the run file does not state it.", 1)
flags.DEFINE_string("workdir", None, "Folder for the report as JSON and the compiled modules.")

_FROM_TRAIN = ["objective", "build_model", "batch_size", "precision"]


def main() -> None:
    """Runs `compile_run` with flags and the bindings of a run file."""
    cli.require_flags("gin_file", "target")
    flag = flags.FLAGS
    target = targets.load(flag.target)
    if flag.sharded and flag.chips == 1:
        raise InputError("--sharded needs --chips. Received: chips=1")
    compilers.prepare(target)
    if flag.workdir:
        files.make_workdir(flag.workdir)
    if flag.chips > 1:
        os.environ["KERAS_BACKEND"] = "jax"
        os.environ["KERAS_HOME"] = os.devnull
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with runtime.suppress_stderr():
            import tensorflow  # noqa: F401 - the modules of training need it with any backend
    else:
        runtime.import_tensorflow()
    import igpt_tf.training.train  # noqa: F401 - registers what a run file may name
    from igpt_tf.ahead_of_time import report
    from igpt_tf.training import plan as planning

    config.parse_flags()
    size = (flag.image_size, flag.image_size) if flag.image_size else planning.bound_image_size()
    if size is None:
        raise InputError("the run file does not state the image size; pass --image_size")
    config.copy_bindings("train", "compile_run", _FROM_TRAIN)
    config.copy_bindings("step_options", "compile_run", ["gradient_accumulation_steps"])
    settings = {"both": (False, True), "off": (False,), "on": (True,)}
    given = cli.flag_values("batch_size", "workdir")
    with runtime.suppress_stderr():
        reports = report.compile_run(
            target=flag.target,
            image_size=size,
            program=flag.program,
            chips=flag.chips,
            sharded=flag.sharded,
            remat=settings[flag.remat],
            search_batch=flag.search_batch,
            print_progress=lambda line: print(line, flush=True),
            **given,
        )
    print(report.format_reports(reports))


if __name__ == "__main__":
    cli.run(main)
