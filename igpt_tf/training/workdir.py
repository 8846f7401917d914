"""The working directory of a run: one run, one configuration, one process at a time."""

import contextlib
import fcntl
import os

import tensorflow as tf

from igpt_tf import config, files, runtime
from igpt_tf.errors import InputError, is_full_disk
from igpt_tf.palette import Palette
from igpt_tf.training import strategies

# Settings that may change when a run is resumed: none of them affects a step, nor which steps are
# measured. A rewound window alone begins where a checkpoint was saved and ends where a report was
# written.
_CHANGEABLE = {
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
    """Paths of a run's files, and the checks made when a run starts.

    The constructor creates the folder and locks it until the process ends, however it ends.

    Args:
        path: Folder of the run.
        worker: Index of this worker. The chief, 0, writes the run's files; the others, who must
            save checkpoints too, write into `.workers/INDEX`.

    Attributes:
        path: As given.
        is_chief: Whether this worker writes the run's files.

    Raises:
        InputError: The folder cannot be written, a file is in the place of the exports, or another
            process is training in it.
    """

    def __init__(self, path: str, worker: int = 0):
        self.path = path
        self.is_chief = worker == 0
        self._own = path if self.is_chief else os.path.join(path, ".workers", str(worker))
        try:
            for folder in ("checkpoints", "summaries", "samples"):
                os.makedirs(self.file(folder), exist_ok=True)
            self._lock = open(self.file(".lock"), "w")
        except OSError as error:
            raise InputError(f"the workdir cannot be written ({error}). Received: {path}") from None
        export = self.file("export")  # checked now, because it is written at the very end
        if os.path.lexists(export) and not os.path.isdir(export):
            raise InputError(
                "a file is in the place of the folder of the SavedModels; move it away and start "
                f"again. Received: {export}"
            )
        try:
            # The kernel releases the lock when the process ends, so no lock is ever stale.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"another process is training in this workdir; choose another. Received: {path}"
            ) from None

    def file(self, *names: str) -> str:
        """Path of a file that this worker writes."""
        return os.path.join(self._own, *names)

    def shared_file(self, *names: str) -> str:
        """Path of a file of the run, which the chief writes and every worker reads."""
        return os.path.join(self.path, *names)

    def claim(self, configuration: str, palette: Palette) -> None:
        """Writes the operative configuration and the palette, unless another run's are there.

        Args:
            configuration: Operative gin text.
            palette: The palette; gin only knows the name of its file.

        Raises:
            InputError: See `refuse_other_run`.
        """
        is_finished = self.result() is not None
        refuse_other_run(self._own, configuration, palette, is_finished=is_finished)
        path = self.file("operative_config.gin")
        before = _read_configuration(path)
        if before is None or before != config.parse_bindings(configuration):
            files.write_text(path, configuration)
        if not os.path.exists(self.file("palette.npy")):
            palette.save(self.file("palette.npy"))

    def result(self) -> dict | None:
        """Numbers of a finished run, or None. Raises: InputError: the file is damaged."""
        path = self.shared_file("result.json")
        if not os.path.exists(path):
            return None
        return files.read_json(
            path,
            description="the result of the run",
            fix="remove it and start again: it is made again from the checkpoints",
            schema=dict,
        )

    def write_result(self, result: dict) -> None:
        """Writes `result.json`, which marks the run as finished."""
        files.write_json(self.file("result.json"), result)


def open_run(workdir: str, strategy: tf.distribute.Strategy, palette: Palette) -> Workdir | None:
    """Opens a workdir for the configuration in force.

    Returns None, after printing a message, if the run has finished.

    Raises:
        InputError: See `Workdir` and `refuse_other_run`.
    """
    folder = Workdir(workdir, strategies.worker_index(strategy))
    with full_disk_error(workdir):
        folder.claim(config.operative_text(), palette)
        if folder.result():
            print(f"this run is finished: {folder.shared_file('result.json')}")
            return None
        if folder.is_chief:
            runtime.append_environment(workdir)
    return folder


def check_run(workdir: str | None, palette: Palette) -> None:
    """Raises the InputErrors of `open_run` that show without writing; for dry runs."""
    if workdir:
        refuse_unwritable(workdir)
        is_finished = os.path.exists(os.path.join(workdir, "result.json"))
        refuse_other_run(workdir, config.operative_text(), palette, is_finished=is_finished)


def refuse_unwritable(path: str) -> None:
    """Raises InputError if a folder cannot be created or written; creates and writes nothing."""
    existing = os.path.abspath(path)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"the workdir cannot be written; choose another. Received: {path}")


def refuse_other_run(
    path: str, configuration: str, palette: Palette, *, is_finished: bool = False
) -> None:
    """Compares a configuration and a palette with those in a folder, if any; writes nothing.

    A resumed run may change what does not affect its steps: `train.export`, `train.num_rewinds`,
    and `intervals` except those of the evaluations, which choose the best step.

    Args:
        path: Folder with `operative_config.gin` and `palette.npy`, or without.
        configuration: Operative gin text.
        palette: The palette.
        is_finished: Whether the folder's run has finished: then nothing may change.

    Raises:
        InputError: The folder belongs to another configuration or palette; the first difference is
            named. Or a file is damaged.
    """
    before = _read_configuration(os.path.join(path, "operative_config.gin"))
    if before is not None:
        changeable = set() if is_finished else _CHANGEABLE
        difference = _first_difference(before, config.parse_bindings(configuration), changeable)
        if difference:
            raise InputError(
                "the workdir belongs to another configuration; choose another workdir or the "
                f"same bindings. Received: {difference}, workdir={path}"
            )
    _refuse_other_palette(os.path.join(path, "palette.npy"), palette)


def _read_configuration(path: str) -> dict[str, str] | None:
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            bindings = config.parse_bindings(file.read())
        reason = "it is empty" if not bindings else None
    except (OSError, ValueError) as error:  # of which InputError is one
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise InputError(
            f"the configuration of the run is damaged ({reason}); remove it and start again with "
            f"the run's own files and bindings. Received: {path}"
        )
    return bindings


def _first_difference(before: dict, now: dict, changeable: set[str]) -> str | None:
    for name in sorted((before.keys() | now.keys()) - changeable):
        if before.get(name) != now.get(name):
            return f"{name} = {now.get(name, '(unset)')} where it was {before.get(name, '(unset)')}"
    return None


def _refuse_other_palette(path: str, palette: Palette) -> None:
    if not os.path.exists(path):
        return
    try:
        before = Palette.load(path)
    except InputError as error:
        raise InputError(
            f"the palette of the run is damaged; remove this file, and it is written again: {error}"
        ) from None
    if before.fingerprint != palette.fingerprint:
        raise InputError(
            "the workdir belongs to another palette; choose another workdir, or the palette that "
            f"the run began with, which is kept in {path}. Received: palette of {len(palette)} "
            f"colours, fingerprint {palette.fingerprint}, where it was {before.fingerprint}"
        )


@contextlib.contextmanager
def full_disk_error(path: str):
    """Replaces Python's or TensorFlow's error of a full disk by an InputError."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if not is_full_disk(error):
            raise
        raise InputError(
            "no space left on the disk; make room and start again: the run resumes from the newest "
            f"undamaged checkpoint. Received: workdir={path}"
        ) from None
