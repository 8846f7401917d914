"""Runs programs as `python -m MODULE` does, each in a process of its own.

The processes are forked from one that has imported TensorFlow, which otherwise takes three seconds
of processor time per start. Tests that send signals to a program, or are about what it imports,
start it with `subprocess`.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.preloaded"])


def run(module: str, *arguments, folder=ROOT, **environment) -> subprocess.CompletedProcess:
    """Runs a program to its end.

    Args:
        module: Name of its module, e.g. "tools.sample".
        *arguments: Its command line.
        folder: Its working folder, from which it may import modules.
        **environment: Variables to set.

    Returns:
        Exit code, stdout and stderr.
    """
    command = [module, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as outputs:
        paths = [os.path.join(outputs, name) for name in ("stdout", "stderr")]
        process = _PROCESSES.Process(
            target=_become, args=(command, str(folder), {**os.environ, **environment}, paths)
        )
        process.start()
        process.join()
        texts = [Path(path).read_text(encoding="utf-8") for path in paths]
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def done(module: str, *arguments, **options) -> str:
    """The output of a program that ends with code 0."""
    ended = run(module, *arguments, **options)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def refused(module: str, *arguments, **options) -> str:
    """The one line of a program that ends with code 2, whatever it printed before."""
    ended = run(module, *arguments, **options)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    return line


def refused_at_once(module: str, *arguments, **options) -> str:
    """The one line of a program that ends with code 2 and prints nothing else to stderr."""
    ended = run(module, *arguments, **options)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert ended.stderr.startswith("error: ")
    return ended.stderr


def _become(command, folder, environment, paths):
    """Turns the new process into the program."""
    for number, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = [folder, str(ROOT)]
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
