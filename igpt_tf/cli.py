"""How programs start and end: flags, exit codes and errors of one line."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable

from absl import flags

from igpt_tf import files
from igpt_tf.errors import InputError, is_full_disk

EXIT_INPUT = 2
_HELP = {"-h", "--help", "-help", "--helpfull"}
_GIN_CALLS = (os.path.join("gin", "config.py"), "inspect.py")  # files that raise _MISSING
_MISSING = re.compile(
    r"(?:\S+ )?missing (?:a|\d+) required .*?argument(.*?)In call to configurable '([\w./]+)'",
    re.DOTALL,
)


def run(main: Callable[[], None]) -> None:
    """Parses the flags, calls `main` and turns the way it ends into an exit code.

    Exit codes: 0 success; 2 the input or configuration is wrong, or does not fit the memory or the
    disk (one line on stderr, no traceback); 130 after SIGINT; 141 if the reader of the output has
    ended, as in `... | head`. Any other error is a bug and shows its traceback.

    Args:
        main: The program, called without arguments once `flags.FLAGS` is parsed.
    """
    for stream in (sys.stdout, sys.stderr):  # file names may hold what the terminal cannot show
        stream.reconfigure(errors="backslashreplace")
    try:
        _parse_flags()
        main()
        sys.stdout.flush()
    except InputError as error:
        exit_with(_one_line(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed again at exit
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if missing := _missing_value(error):
            exit_with(missing)
        if is_full_disk(error):
            exit_with(f"no space left on the disk; free some and start again.{_workdir()}")
        if not _is_out_of_memory(error):
            raise
        _print_error(
            "not enough memory; reduce the batch size or set "
            "step_options.gradient_accumulation_steps, or build_model.remat for training; "
            "`plan` computes what fits"
        )
        os._exit(EXIT_INPUT)  # other threads would continue to allocate memory


def require_flags(*names: str) -> None:
    """Raises: InputError if one of the flags was not given."""
    for name in names:
        if not flags.FLAGS[name].value:
            raise InputError(f"--{name} is missing (--help lists the flags)")


def flag_values(*names: str) -> dict:
    """The values of the flags that were given, as keyword arguments {name: value}.

    A flag without a value is left out, so that the default of the function called, or what gin
    binds to its parameter, applies.

    Example:
        scores.evaluate(**cli.flag_values("saved_model", "workdir", "split"))
    """
    values = {name: flags.FLAGS[name].value for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _parse_flags() -> None:
    """Parses `sys.argv` and expands `~` in paths.

    Raises:
        InputError: An unknown flag, a bad value, a path that cannot be used or an argument that is
            not a flag.
    """
    for argument in sys.argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"names must be valid UTF-8; rename the file. Received: {argument!r}"
            ) from None
    try:
        if _HELP & set(sys.argv[1:]):
            _print_help()
        rest = flags.FLAGS(sys.argv)[1:]
    except flags.Error as error:
        raise InputError(f"{error} (--help lists the flags)") from None
    if rest:
        raise InputError(f"flags start with two dashes (--help lists them). Received: {rest[0]!r}")
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if isinstance(flag.value, str):
            flag.value = files.local_path(flag.value, f"--{name}")
        elif isinstance(flag.value, list) and name != "gin_param":
            flag.value = [
                files.local_path(one, f"--{name}") if isinstance(one, str) else one
                for one in flag.value
            ]


def _print_help() -> None:
    """Prints the program's purpose and flags and exits."""
    print(sys.modules["__main__"].__doc__ or "")
    print(flags.FLAGS.main_module_help())
    print(flags.FLAGS.module_help("igpt_tf.config"))
    sys.stdout.flush()
    sys.exit(0)


def exit_with(line: str) -> None:
    """Prints an error of one line and exits with code 2."""
    _print_error(line)
    sys.exit(EXIT_INPUT)


def _print_error(line: str) -> None:
    sys.stdout.flush()
    print("error: " + line, file=sys.stderr, flush=True)


def _one_line(error: InputError) -> str:
    """The message without control characters and the call chain that gin appends."""
    message = " ".join(str(error).split("\n  In call to configurable")[0].split())
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], message)


def _missing_value(error: Exception) -> str | None:
    """Message for a configurable that gin called without a required argument; None otherwise."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    found = _MISSING.match(str(error))
    if not (isinstance(error, TypeError) and found and raised_in.endswith(_GIN_CALLS)):
        return None
    arguments, configurable = found.groups()
    names = [f"{configurable}.{name}" for name in re.findall(r"'(\w+)'", arguments)]
    return f"{' and '.join(names)} must be bound: --gin_param='{names[0]}=...', or in a gin file"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or a device ran out of memory."""
    exhausted = type(error).__name__ == "ResourceExhaustedError"  # TensorFlow may not be imported
    message = str(error).lower()
    return isinstance(error, MemoryError) or (
        exhausted and ("oom" in message or "out of memory" in message)
    )


def _workdir() -> str:
    """The end of an error message that names the workdir, "" without such a flag."""
    workdir = flags.FLAGS.flag_values_dict().get("workdir")
    return f" Received: workdir={workdir}" if workdir else ""
