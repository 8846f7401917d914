"""The working directory of a run: one run, one configuration, one process at a time."""

import contextlib
import fcntl
import json
import os

import tensorflow as tf

from igpt_tf.errors import InputError, is_full_disk


class Workdir:
    """Paths of a run's files, and the checks made when a run starts in them.

    Opening creates the folder and locks it until the process ends, however it ends.

    Args:
        path: The folder of the run.
        worker: Which host this is. The chief, 0, writes the run's files; the others, who must write
            checkpoints too, do so in `.workers/NUMBER`.

    Raises:
        InputError: The folder cannot be written, a file lies where the exports go, or another
            process is training in it.
    """

    def __init__(self, path: str, worker: int = 0):
        self.run = path
        self.path = os.path.join(path, ".workers", str(worker)) if worker else path
        try:
            for folder in ("checkpoints", "summaries", "samples"):
                os.makedirs(self.file(folder), exist_ok=True)
            self._lock = open(self.file(".lock"), "w")
        except OSError as error:
            raise InputError(f"the workdir cannot be written ({error}). Received: {path}") from None
        export = self.file("export")  # looked at now, as it is written at the very end
        if os.path.lexists(export) and not os.path.isdir(export):
            raise InputError(
                "something lies where the folder of the SavedModels goes; move it away and start "
                f"again. Received: {export}"
            )
        try:
            # The kernel drops the lock with the process: a dead run leaves no obstacle.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"another process is training in this workdir; choose another. Received: {path}"
            ) from None

    def file(self, *names: str) -> str:
        """The path of a file that this host writes."""
        return os.path.join(self.path, *names)

    @property
    def is_chief(self) -> bool:
        """Whether this host writes the run's files."""
        return self.path == self.run

    def claim(self, configuration: str) -> None:
        """Writes the operative configuration, or compares it with the one that is there.

        Args:
            configuration: The operative gin text.

        Raises:
            InputError: The folder belongs to another configuration, whose first difference is
                named, or the file is damaged.
        """
        path = self.file("operative_config.gin")
        if not os.path.exists(path):
            write_atomically(path, configuration)
            return
        mend = "remove it and start again with the run's own files and bindings"
        with naming_a_damaged_file(path, mend), open(path, encoding="utf-8") as file:
            difference = _first_difference(_bindings(file.read()), _bindings(configuration))
        if difference:
            raise InputError(
                "the workdir belongs to another configuration; choose another workdir or the "
                f"same bindings. Received: {difference}, workdir={self.path}"
            )

    def result(self) -> dict | None:
        """The numbers of a finished run, or None. Raises: InputError: the file is damaged."""
        path = os.path.join(self.run, "result.json")
        if not os.path.exists(path):
            return None
        mend = "remove it and start again: it is made anew from the checkpoints"
        with naming_a_damaged_file(path, mend), open(path, encoding="utf-8") as file:
            return dict(json.load(file))

    def write_result(self, result: dict) -> None:
        """Writes `result.json`, which marks the run as finished."""
        write_atomically(self.file("result.json"), json.dumps(result, indent=2) + "\n")


@contextlib.contextmanager
def naming_a_damaged_file(path: str, mend: str):
    """Says in one line that a file of the run cannot be read, and how to mend it.

    Args:
        path: The file, which is only read inside.
        mend: What to do, in words.

    Raises:
        InputError: In the place of what reading and parsing raise.
    """
    try:
        yield
    except (OSError, TypeError, ValueError, RecursionError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"a file of the run is damaged ({said}); {mend}. Received: {path}"
        ) from None


@contextlib.contextmanager
def naming_a_full_disk(path: str):
    """Says in one line that a file could not be written for lack of room.

    Raises:
        InputError: In the place of Python's or TensorFlow's error.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if not is_full_disk(error):
            raise
        raise InputError(
            "no space left on the disk; make room and start again: the run resumes from the newest "
            f"whole checkpoint. Received: workdir={path}"
        ) from None


def write_atomically(path: str, text: str) -> None:
    """Writes a file that is either whole or absent."""
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".part", path)


def _bindings(text: str) -> dict[str, str]:
    """gin text -> {'train.seed': '0', ...}; a value may continue over indented lines."""
    bindings, name = {}, None
    for line in text.splitlines():
        if line.startswith((" ", "\t")) and name:
            bindings[name] += " " + line.strip()
        elif "=" in line and not line.startswith("#"):
            name, value = (part.strip() for part in line.split("=", 1))
            bindings[name] = value
    return bindings


def _first_difference(before: dict, now: dict) -> str | None:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            return f"{name} = {now.get(name, '(unset)')} where it was {before.get(name, '(unset)')}"
    return None
