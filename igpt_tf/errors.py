"""The error that users can fix, and the messages of other libraries made short."""

import errno
import re

_DISK_FULL = re.compile(
    r"No space left|quota exceeded|\d+ requested and \d+ written", re.IGNORECASE
)
_NOISE = re.compile(r"Graph execution error|Detected at|<stack traces|\s*\[\[")


class InputError(ValueError):
    """The input or the configuration is wrong.

    The message is one line: what is wrong, how to fix it, then `Received: name=value`.
    Programs print it without a traceback and exit with code 2 (see `igpt_tf.cli`).
    """


def one_line(message: str) -> str:
    """The part of a message of TensorFlow that users understand; "" if there is none.

    Names of the graph's nodes and source lines are removed.
    """
    lines = [line for line in message.splitlines() if line.strip() and not _NOISE.match(line)]
    assertion = re.match(r"assertion failed: \[(.*?)\](?: \[(.*)\])?", lines[0] if lines else "")
    found = "".join(assertion.groups("")) if assertion else "".join(lines[:1])
    return " ".join(found.split())[:300]


def is_full_disk(error: Exception) -> bool:
    """Whether the disk or the user's quota is full; some libraries report it as text only."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or _DISK_FULL.search(str(error)) is not None


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises: InputError unless `value` of the setting `name` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}. Received: {name}={value!r}")
