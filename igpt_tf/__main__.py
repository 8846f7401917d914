"""All programs as one command: `igpt COMMAND ...`, or `python -m igpt_tf COMMAND ...`."""

import ast
import os
import runpy
import sys

import igpt_tf
from igpt_tf import cli, config

_MAIN = "pretrain"
_NAMES = {"linear_probe": "probe"}  # of tools whose command is not called like their file


def main() -> None:
    """Runs the program that the first argument names, with the other arguments."""
    command = sys.argv[1].replace("_", "-") if len(sys.argv) > 1 else "--help"
    programs = _programs()
    if command in ("--help", "-h", "help"):
        print(_help(programs))
    elif command == "--version":
        print(igpt_tf.__version__)
    elif command in programs:
        sys.path.append(os.getcwd())  # as `python -m` does: gin files may import the user's modules
        sys.argv = sys.argv[1:]
        if command == _MAIN:
            runpy.run_module("igpt_tf.main", run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(programs[command], run_name="__main__")
    else:
        hint = config.did_you_mean(command, programs)
        cli.exit_with(f"no such command{hint} (igpt --help lists them). Received: {command}")


def _programs() -> dict[str, str]:
    """{command: path of the program}."""
    tools = os.path.join(config.SHIPPED, "tools")
    stems = sorted(name.removesuffix(".py") for name in os.listdir(tools) if name.endswith(".py"))
    programs = {_MAIN: os.path.join(os.path.dirname(__file__), "main.py")}
    for stem in stems:
        name = _NAMES.get(stem, stem).replace("_", "-")
        programs[name] = os.path.join(tools, stem + ".py")
    return programs


def _help(programs: dict[str, str]) -> str:
    lines = ["Image GPT: igpt COMMAND --help describes a command and its flags.", ""]
    width = max(map(len, programs))
    for name, path in programs.items():
        with open(path, encoding="utf-8") as file:
            purpose = (ast.get_docstring(ast.parse(file.read())) or "").split("\n")[0]
        lines.append(f"  {name.ljust(width)}  {purpose.split(': `')[0].rstrip('.')}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
