"""Pretrains on handwritten digits, probes and samples the result: `make demo`.

python -m tools.demo [--workdir=runs/digits] [--gin_param='train.num_steps=...']
"""

import os
import shlex
import signal
import subprocess
import sys

from absl import flags

import igpt_tf.config  # noqa: F401 - defines --gin_file and --gin_param
from igpt_tf import cli, files
from igpt_tf.formatting import table

flags.DEFINE_string("workdir", "runs/digits", "Folder of the run; the same folder again resumes.")
flags.FLAGS.set_default("gin_file", ["gin/runs/digits_tiny_ar.gin"])

_BASELINES = {
    "uniform": "all colours are equally likely",
    "unigram": "frequency of each colour",
    "per_position": "frequency of each colour at each pixel",
}


def main() -> None:
    """Pretrains, probes and samples in a program each, then prints a summary."""
    flag = flags.FLAGS
    workdir, export = flag.workdir, os.path.join(flag.workdir, "export")
    configuration = [f"--gin_file={path}" for path in flag.gin_file]
    configuration += [f"--gin_param={binding}" for binding in flag.gin_param]
    run("pretrain", *configuration, f"--workdir={workdir}")
    print(_losses(workdir))
    for command, name in (("probe", "linear_probe"), ("sample", "sample")):
        folder = os.path.join(workdir, name)
        run(command, f"--saved_model={export}", f"--workdir={folder}")
    print(
        f"\nplot of the probe  {os.path.join(workdir, 'linear_probe', 'linear_probe.png')}\n"
        f"samples            {os.path.join(workdir, 'sample', 'samples.png')}\n"
        f"TensorBoard        {shlex.join(['tensorboard', f'--logdir={workdir}'])}\n"
        f"report             {_command('report', f'--workdir={workdir}')}\n"
        f"web page           {_command('playground', f'--saved_model={export}')}"
    )


def run(command: str, *arguments: str) -> None:
    """Runs a program to its end; exits with its exit code if that is not 0."""
    print(f"\n== {_command(command, *arguments)}", flush=True)
    child = subprocess.Popen([sys.executable, "-m", "igpt_tf", command, *arguments])
    # Ctrl-C reaches the child too, which saves its state first; SIGTERM is passed on to it.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if code:
        sys.exit(code if code > 0 else 128 - code)


def _command(command: str, *arguments: str) -> str:
    """A command line that a shell can run."""
    return shlex.join(["python", "-m", "igpt_tf", command, *arguments])


def _losses(workdir: str) -> str:
    """The loss of the run beside the baselines."""
    path = os.path.join(workdir, "result.json")
    result = files.read_json(path, description="the result of the run", fix="run it again")
    rows = [[f"this model, step {result['step']:,}", f"{result['nats_per_token']['valid']:.3f}"]]
    for name, description in _BASELINES.items():
        title = f"{name.replace('_', ' ')}: {description}"
        rows.append([title, f"{result['baselines'][name]:.3f}"])
    return "\n" + table(["predictor of held-out images", "nats/token"], rows)


if __name__ == "__main__":
    cli.run(main)
