"""Pretrains on the handwritten digits, probes and samples the result: `make demo`.

python -m tools.demo [--workdir=runs/digits] [--gin_param='train.num_steps=...']
"""

import os
import signal
import subprocess
import sys

from absl import flags

from igpt_tf import cli, runtime

flags.DEFINE_string("workdir", "runs/digits", "Folder of the run; the same folder again resumes.")
flags.DEFINE_string("gin_file", "gin/runs/digits_tiny_ar.gin", "The run.")
flags.DEFINE_multi_string("gin_param", [], "Bindings for the run; may be repeated.")


def main() -> None:
    """Pretrain, probe, sample, one program after the other; then the numbers of all three."""
    flag = flags.FLAGS
    workdir, export = flag.workdir, os.path.join(flag.workdir, "export")
    bindings = [f"--gin_param={binding}" for binding in flag.gin_param]
    step("igpt_tf.main", f"--gin_file={flag.gin_file}", f"--workdir={workdir}", *bindings)
    for tool in ("linear_probe", "sample"):
        folder = os.path.join(workdir, tool)
        # What it prints comes again in the summary; its progress shows on stderr.
        step(f"tools.{tool}", f"--saved_model={export}", f"--workdir={folder}", quiet=True)
    runtime.import_tensorflow()
    from igpt_tf.evaluation import demo_summary

    print(demo_summary.of(workdir))


def step(module: str, *arguments: str, quiet: bool = False) -> None:
    """Runs a program to its end, and ends this one with its exit code if that is not 0."""
    print(f"\n== python -m {module} {' '.join(arguments)}", flush=True)
    output = subprocess.DEVNULL if quiet else None
    child = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=output)
    # Ctrl-C reaches the child too, which saves its state first; a TERM is passed on to it.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
    if code:
        sys.exit(code if code > 0 else 128 - code)


if __name__ == "__main__":
    cli.run(main)
