"""How a program starts and ends: flags in, exit code out."""

import os
import re
import sys
import traceback
from collections.abc import Callable

from absl import flags

from igpt_tf.errors import InputError, is_full_disk

EXIT_INPUT = 2
_HELP = {"-h", "--help", "-help", "--helpfull"}
_CALLERS = (os.path.join("gin", "config.py"), "inspect.py")  # who miss an argument
_MISSING = re.compile(
    r"(?:\S+ )?missing (?:a|\d+) required .*?argument(.*?)In call to configurable '([\w./]+)'",
    re.DOTALL,
)


def run(main: Callable[[], None]) -> None:
    """Parses the flags, calls `main` and turns its end into an exit code.

    Exit codes: 0 done; 2 the input or configuration is wrong, or too large for the memory or the
    disk (one line on stderr, no traceback); 130 after SIGINT. Anything else is a bug and shows its
    traceback.

    Args:
        main: The program, called without arguments once `flags.FLAGS` is parsed.
    """
    try:
        _parse_flags()
        main()
    except InputError as error:
        _refuse(_one_line(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if missing := _missing_value(error):
            _refuse(missing)
        if is_full_disk(error):
            _refuse(f"no space left on the disk; make room and start again.{_workdir()}")
        if not _is_out_of_memory(error):
            raise
        _say(
            "the memory does not suffice: take smaller batches, or cut them into parts "
            "(step_options.gradient_accumulation_steps) or keep less (build_model.remat) while "
            "training; tools.plan tells what fits"
        )
        os._exit(EXIT_INPUT)  # other threads would go on asking for memory


def _refuse(line: str) -> None:
    _say(line)
    sys.exit(EXIT_INPUT)


def _say(line: str) -> None:
    sys.stdout.flush()
    print("error: " + line, file=sys.stderr, flush=True)


def _missing_value(error: Exception) -> str | None:
    """What to say of a configurable that gin called without all it needs; None of other errors."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    found = _MISSING.match(str(error))
    if not (isinstance(error, TypeError) and found and raised_in.endswith(_CALLERS)):
        return None
    arguments, configurable = found.groups()
    names = [f"{configurable}.{name}" for name in re.findall(r"'(\w+)'", arguments)]
    return f"{' and '.join(names)} must be bound: --gin_param='{names[0]}=...', or in a gin file"


def _workdir() -> str:
    """Where the program writes, for an error, as far as it has been told."""
    workdir = flags.FLAGS.flag_values_dict().get("workdir")
    return f" Received: workdir={workdir}" if workdir else ""


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or a device had no memory left; a full disk is another matter."""
    exhausted = type(error).__name__ == "ResourceExhaustedError"  # TensorFlow may not be there yet
    message = str(error).lower()
    return isinstance(error, MemoryError) or (
        exhausted and ("oom" in message or "out of memory" in message)
    )


def require_flags(*names: str) -> None:
    """Raises: InputError if one of the flags was not given."""
    for name in names:
        if not flags.FLAGS[name].value:
            raise InputError(f"--{name} is missing (--help lists the flags)")


def _parse_flags() -> None:
    """Parses `sys.argv`. Raises: InputError on an unknown flag, a bad value or a stray argument."""
    try:
        if _HELP & set(sys.argv[1:]):
            _help()
        rest = flags.FLAGS(sys.argv)[1:]
    except flags.Error as error:
        raise InputError(f"{error} (--help lists the flags)") from None
    if rest:
        raise InputError(f"flags start with two dashes (--help lists them). Received: {rest[0]!r}")


def _help() -> None:
    """Prints what the program is for and its flags, and ends it."""
    print(sys.modules["__main__"].__doc__ or "")
    print(flags.FLAGS.main_module_help())
    print(flags.FLAGS.module_help("igpt_tf.config"))
    sys.exit(0)


def _one_line(error: InputError) -> str:
    """The message without the call chain that gin appends on its own lines."""
    message = str(error).split("\n  In call to configurable")[0]
    return " ".join(message.split())
