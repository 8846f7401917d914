"""The working directory of a run: one run, one configuration, one process at a time."""

import contextlib
import fcntl
import json
import os

import tensorflow as tf

from igpt_tf.errors import InputError, is_full_disk
from igpt_tf.palette import Palette

# What a run that goes on may change: none of these has a say in a step, nor in which steps are
# measured. A rewound window alone begins where a checkpoint lies and ends where a report noticed.
_FREE = {
    "train.export",
    "train.num_rewinds",
    "intervals.log_every",
    "intervals.checkpoint_every",
    "intervals.keep_checkpoints",
    "intervals.sample_every",
    "intervals.probe_every",
    "intervals.num_probe_images",
    "intervals.profile_steps",
}


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

    def claim(self, configuration: str, palette: Palette) -> None:
        """Writes the operative configuration and the palette, unless another run's are there.

        Args:
            configuration: The operative gin text.
            palette: The run's; gin knows no more of it than its file's name.

        Raises:
            InputError: See `refuse_another`, or the file is damaged.
        """
        refuse_another(self.path, configuration, palette, is_finished=self.result() is not None)
        path = self.file("operative_config.gin")
        before = _read(path)
        if before is None or _bindings(before) != _bindings(configuration):
            write_atomically(path, configuration)
        if not os.path.exists(self.file("palette.npy")):
            palette.save(self.file("palette.npy"))

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


def refuse_unwritable(path: str) -> None:
    """Raises: InputError if a folder cannot be made or written there; makes and writes nothing."""
    there = os.path.abspath(path)
    while not os.path.exists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"the workdir cannot be written; choose another. Received: {path}")


def refuse_another(
    path: str, configuration: str, palette: Palette, *, is_finished: bool = False
) -> None:
    """Compares a configuration and a palette with those in a folder, if any; writes nothing.

    A run that goes on may change what has no say in its steps: `train.export`,
    `train.num_rewinds`, and `intervals` but for the evaluations, which choose the best step.

    Args:
        path: A folder that holds `operative_config.gin` and `palette.npy`, or not.
        configuration: The operative gin text.
        palette: The run's.
        is_finished: Whether the folder's run is: then nothing of it may change.

    Raises:
        InputError: The folder belongs to another configuration, and names the first difference; or
            to another palette.
    """
    before = _read(os.path.join(path, "operative_config.gin"))
    free = set() if is_finished else _FREE
    if before is None:
        difference = None
    else:
        difference = _first_difference(_bindings(before), _bindings(configuration), free)
    if difference:
        raise InputError(
            "the workdir belongs to another configuration; choose another workdir or the "
            f"same bindings. Received: {difference}, workdir={path}"
        )
    _refuse_another_palette(os.path.join(path, "palette.npy"), palette)


def _refuse_another_palette(path: str, palette: Palette) -> None:
    if not os.path.exists(path):
        return
    try:
        before = Palette.load(path)
    except InputError as error:
        raise InputError(f"remove this file, and it is written again: {error}") from None
    if before.fingerprint != palette.fingerprint:
        raise InputError(
            "the workdir belongs to another palette; choose another workdir, or the palette that "
            f"the run began with, which is kept in {path}. Received: palette of {len(palette)} "
            f"colours, fingerprint {palette.fingerprint}, where it was {before.fingerprint}"
        )


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


def _read(path: str) -> str | None:
    if not os.path.exists(path):
        return None
    mend = "remove it and start again with the run's own files and bindings"
    with naming_a_damaged_file(path, mend), open(path, encoding="utf-8") as file:
        return file.read()


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


def _first_difference(before: dict, now: dict, free: set[str]) -> str | None:
    for name in sorted((before.keys() | now.keys()) - free):
        if before.get(name) != now.get(name):
            return f"{name} = {now.get(name, '(unset)')} where it was {before.get(name, '(unset)')}"
    return None
