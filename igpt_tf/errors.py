"""The one error that is the user's to mend, and others' errors understood or made short for it."""

import errno
import re

_FULL = re.compile(r"No space left|quota exceeded|\d+ requested and \d+ written", re.IGNORECASE)
_NOISE = re.compile(r"Graph execution error|Detected at|<stack traces|\s*\[\[")


class InputError(ValueError):
    """The input or the configuration is wrong.

    The message is one line: what is wrong, how to mend it, then `Received: name=value`.
    Programs print it without a traceback and exit with code 2 (see `igpt_tf.cli`).
    """


def one_line(said: str) -> str:
    """What a message of TensorFlow says, without the graph's names around it; maybe nothing."""
    lines = [line for line in said.splitlines() if line.strip() and not _NOISE.match(line)]
    assertion = re.match(r"assertion failed: \[(.*?)\](?: \[(.*)\])?", lines[0] if lines else "")
    found = "".join(assertion.groups("")) if assertion else "".join(lines[:1])
    return " ".join(found.split())[:300]


def is_full_disk(error: Exception) -> bool:
    """Whether a file could not be written for lack of room; some libraries say so in words only."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or _FULL.search(str(error)) is not None
