"""The working directory of a run: one run, one configuration, one process at a time."""

import ast
import contextlib
import dataclasses
import os
import shutil
from collections.abc import Collection

import msgspec
import tensorflow as tf
from absl import logging

from igpt_tf import config, files, runtime
from igpt_tf.data import Source
from igpt_tf.errors import InputError, is_full_disk
from igpt_tf.palette import Palette
from igpt_tf.training import strategies
from igpt_tf.training.checkpoints import newest_step

# Settings that may change when a run is resumed: none of them affects a step, nor which steps are
# measured. A rewound window alone begins where a checkpoint was saved and ends where a report was
# written.
_CHANGEABLE = {
    "train.export",
    "train.num_rewinds",
    "train.allow_changed_data",
    "finetune.allow_changed_data",
    "intervals.log_every",
    "intervals.checkpoint_every",
    "intervals.keep_checkpoints",
    "intervals.sample_every",
    "intervals.probe_every",
    "intervals.num_probe_images",
    "intervals.profile_steps",
}
# What a finished run may change: it is lengthened, or exported again.
_LENGTH, _EXPORT = "train.num_steps", "train.export"
# A run may continue on other devices: checkpoints do not depend on their number. Losses then agree
# to rounding, not bit for bit.
_CHANGEABLE |= {
    "train.strategy",
    "mirrored_strategy.devices",
    "mirrored_strategy.logical_cpus",
    "multi_worker_strategy.cluster",
    "multi_worker_strategy.startup_seconds",
    "sharded_strategy.cluster",
    "sharded_strategy.logical_cpus",
    "sharded_strategy.startup_seconds",
    "tpu_strategy.address",
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
        length_before: `train.num_steps` of the earlier starts of a run that `claim` found to be
            longer now; else None.

    Raises:
        InputError: The folder cannot be written, a file is where the exports belong, or another
            process is training in it.
    """

    def __init__(self, path: str, worker: int = 0):
        self.path = path
        self.is_chief = worker == 0
        self.length_before = None
        self._own = path if self.is_chief else os.path.join(path, ".workers", str(worker))
        try:
            for folder in ("checkpoints", "summaries", "samples"):
                os.makedirs(self.file(folder), exist_ok=True)
            self._lock = files.lock(self.file(".lock"))
        except BlockingIOError:
            raise InputError(
                f"another process is training in this workdir; choose another. Received: {path}"
            ) from None
        except OSError as error:
            raise InputError(f"the workdir cannot be written ({error}). Received: {path}") from None
        export = self.file("export")  # checked now, because it is written at the very end
        if os.path.lexists(export) and not os.path.isdir(export):
            raise InputError(
                "a file is where the folder of the SavedModels belongs; move it away and start "
                f"again. Received: {export}"
            )

    def file(self, *names: str) -> str:
        """Path of a file that this worker writes."""
        return os.path.join(self._own, *names)

    def shared_file(self, *names: str) -> str:
        """Path of a file of the run, which the chief writes and every worker reads."""
        return os.path.join(self.path, *names)

    def claim(self, run: "RunIdentity", *, allow_changed_data: bool = False) -> bool:
        """Writes what identifies a run, unless another run's files are there.

        The result of a finished run that is to be lengthened, or exported again, is removed.

        Args:
            run: The configuration, palette and data of this start.
            allow_changed_data: Whether a run may continue with other images than it began with.

        Returns:
            Whether there is something to do: the run is not finished.

        Raises:
            InputError: See `refuse_other_run`.
        """
        is_finished = self.result() is not None
        path = self.file("operative_config.gin")
        before, now = _read_configuration(path), config.parse_bindings(run.configuration)
        has_work = refuse_other_run(
            self._own,
            run,
            checkpoints=self.shared_file("checkpoints"),
            is_finished=is_finished,
            allow_changed_data=allow_changed_data,
        )
        if before is not None and _is_longer(before, now) and self._has_checkpoints():
            self.length_before = int(before[_LENGTH])
        if is_finished and has_work and self.is_chief:
            # First of all: a run that is killed from here on is an unfinished one.
            os.remove(self.file("result.json"))
        if before is None or before != now:
            files.write_text(path, run.configuration)
        if not os.path.exists(self.file("palette.npy")):
            run.palette.save(self.file("palette.npy"))
        if has_work:
            files.write_json(self.file("data.json"), run.data)
        return has_work

    def _has_checkpoints(self) -> bool:
        return newest_step(self.shared_file("checkpoints")) is not None

    def remove_exports_after(self, step: int) -> None:
        """Removes SavedModels of later steps: readers take the one of the highest step."""
        for name in os.listdir(self.file("export")):
            if name.isdecimal() and int(name) > step:
                shutil.rmtree(self.file("export", name))

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


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """What a run is: the same at every start, and on every worker.

    Attributes:
        configuration: Operative gin text.
        palette: The palette; gin only knows the name of its file.
        data: Content of `data.json`: {"source": description, "splits": {name: {"num_images",
            "fingerprint"}}, "working_directory": folder that relative paths refer to}.
    """

    configuration: str
    palette: Palette
    data: dict

    @classmethod
    def current(cls, palette: Palette, source: Source) -> "RunIdentity":
        """Identity of the configuration in force."""
        splits = {"train": source.train, "valid": source.valid, "test": source.test}
        data = {
            "source": source.description,
            "splits": {
                name: {"num_images": len(examples), "fingerprint": examples.fingerprint()}
                for name, examples in splits.items()
                if examples is not None
            },
            "working_directory": os.getcwd(),
        }
        return cls(config.operative_text(), palette, data)

    def settings(self) -> dict[str, str]:
        """Name -> value of everything that has to be the same on all workers."""
        return {
            **config.parse_bindings(self.configuration),
            "palette": self.palette.fingerprint,
            **{
                f"{name} images": f"{split['num_images']} of fingerprint {split['fingerprint']}"
                for name, split in self.data["splits"].items()
            },
            **{f"version of {name}": version for name, version in runtime.versions().items()},
        }


def open_run(
    workdir: str,
    strategy: tf.distribute.Strategy,
    palette: Palette,
    source: Source,
    *,
    allow_changed_data: bool = False,
) -> Workdir | None:
    """Opens a workdir for the configuration in force.

    Returns None, after printing a message, if the run has finished.

    Raises:
        InputError: The workers' settings differ; or see `Workdir` and `refuse_other_run`.
    """
    run = RunIdentity.current(palette, source)
    strategies.check_same_on_all_workers(strategy, run.settings())
    folder = Workdir(workdir, strategies.worker_index(strategy))
    with full_disk_error(workdir):
        has_work = folder.claim(run, allow_changed_data=allow_changed_data)
        any_worker = strategies.any_worker_function(strategy)
        if any_worker is not None:  # a start may have been killed between two workers' claims
            has_work = any_worker(has_work)
        if not has_work:
            print(f"this run is finished: {folder.shared_file('result.json')}")
            return None
        if folder.is_chief:
            runtime.append_environment(workdir)
    return folder


def check_run(
    workdir: str | None, palette: Palette, source: Source, *, allow_changed_data: bool = False
) -> None:
    """Raises the InputErrors of `open_run` that show without writing; for dry runs."""
    if workdir:
        refuse_unwritable(workdir)
        refuse_other_run(
            workdir,
            RunIdentity.current(palette, source),
            checkpoints=os.path.join(workdir, "checkpoints"),
            is_finished=os.path.exists(os.path.join(workdir, "result.json")),
            allow_changed_data=allow_changed_data,
        )


def refuse_unwritable(path: str) -> None:
    """Raises InputError if a folder cannot be created or written; creates and writes nothing."""
    existing = os.path.abspath(path)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"the workdir cannot be written; choose another. Received: {path}")


def refuse_other_run(
    path: str,
    run: RunIdentity,
    *,
    checkpoints: str,
    is_finished: bool = False,
    allow_changed_data: bool = False,
) -> bool:
    """Compares configuration, palette and data with those in a folder, if any; writes nothing.

    A resumed run may change what does not affect its steps: `train.export`, `train.num_rewinds`,
    and `intervals` except those of the evaluations, which choose the best step. It may also become
    longer. A finished run may become longer, or be exported again with another `train.export`.

    Args:
        path: Folder with `operative_config.gin`, `palette.npy` and `data.json`, or without.
        run: The configuration, palette and data of this start.
        checkpoints: Folder of the run's checkpoints.
        is_finished: Whether the folder's run has finished. If it stays so, no setting may change,
            and the data are not compared, because they are not needed any more.
        allow_changed_data: Whether other images than the run began with are accepted.

    Returns:
        Whether there is something to do: the run is unfinished, or longer now, or to be exported
        again.

    Raises:
        InputError: The folder belongs to another run; the first difference is named. Or the run
            has become shorter, or a finished one kept no checkpoint to go on from. Or a file is
            damaged.
    """
    data = _read_data(os.path.join(path, "data.json"))
    before = _read_configuration(os.path.join(path, "operative_config.gin"))
    has_work = not is_finished
    if before is not None:
        now = config.parse_bindings(run.configuration)
        is_longer = _is_longer(before, now)
        has_work = has_work or is_longer or before.get(_EXPORT) != now.get(_EXPORT)
        changeable = {_EXPORT} if is_finished and not is_longer else _CHANGEABLE
        difference = first_difference(
            before,
            now,
            changeable=changeable | ({_LENGTH} if is_longer else set()),
            folder_before=data["working_directory"] if data else os.getcwd(),
        )
        if difference and difference.startswith(f"{_LENGTH} ="):
            raise InputError(
                "a run can be lengthened, not shortened; choose another workdir or at least its "
                f"number of steps. Received: {difference}, workdir={path}"
            )
        if difference:
            raise InputError(
                "the workdir belongs to another configuration; choose another workdir or the "
                f"same bindings. Received: {difference}, workdir={path}"
            )
    _refuse_other_palette(os.path.join(path, "palette.npy"), run.palette)
    if data is not None and has_work:
        _refuse_changed_data(path, data, run.data, allow_changed_data)
    if is_finished and has_work and newest_step(checkpoints) is None:
        raise InputError(
            "the finished run has no checkpoint from which it could be lengthened or exported "
            f"again; choose another workdir. Received: workdir={path}"
        )
    return has_work


def _is_longer(before: dict[str, str], now: dict[str, str]) -> bool:
    """Whether `train.num_steps` is higher now; False where it is a macro, or not bound."""
    lengths = before.get(_LENGTH, ""), now.get(_LENGTH, "")
    return all(length.isdecimal() for length in lengths) and int(lengths[1]) > int(lengths[0])


def _refuse_changed_data(path: str, before: dict, now: dict, allow_changed_data: bool) -> None:
    for name in sorted(before["splits"].keys() | now["splits"].keys()):
        splits = before["splits"].get(name), now["splits"].get(name)
        if splits[0] == splits[1]:
            continue
        sizes = [split["num_images"] if split else 0 for split in splits]
        difference = f"{name}: {sizes[1]:,} images, {sizes[0]:,} when the run began"
        if not allow_changed_data:
            raise InputError(
                "the data have changed since the run began, so images that were trained on may be "
                "among the held-out ones; restore the data, choose another "
                "workdir, or accept this with the parameter allow_changed_data=True of "
                f"train or finetune. Received: {difference}, workdir={path}"
            )
        logging.warning(
            "the data have changed since the run began; held-out losses may be of images that were "
            "trained on (%s)",
            difference,
        )


def _read_data(path: str) -> dict | None:
    if not os.path.exists(path):
        return None
    return msgspec.to_builtins(
        files.read_json(
            path,
            description="the record of the run's data",
            fix="remove it and start again if the data are still those that the run began with",
            schema=_Data,
        )
    )


class _Split(msgspec.Struct):
    num_images: int
    fingerprint: str


class _Data(msgspec.Struct):
    source: dict
    splits: dict[str, _Split]
    working_directory: str


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


def first_difference(
    before: dict, now: dict, *, changeable: Collection[str] = (), folder_before: str
) -> str | None:
    """Describes the first binding that differs, such as "train.seed = 1 where it was 0".

    Args:
        before: Bindings of a run, from `config.parse_bindings`.
        now: Bindings that are compared with them.
        changeable: Names that are not compared.
        folder_before: Folder where relative paths of `before` begin.
    """
    for name in sorted((before.keys() | now.keys()) - set(changeable)):
        values = before.get(name, "(unset)"), now.get(name, "(unset)")
        if values[0] != values[1] and not _is_same_path(*values, folder_before):
            return f"{name} = {values[1]} where it was {values[0]}"
    return None


def _is_same_path(before: str, now: str, folder_before: str) -> bool:
    """Whether two gin values are names of the same existing file or folder."""
    try:
        before, now = ast.literal_eval(before), ast.literal_eval(now)
    except (ValueError, SyntaxError):  # references and macros
        return False
    if not (isinstance(before, str) and isinstance(now, str)):
        return False
    now = os.path.expanduser(now)
    if not os.path.exists(now):
        return False
    return os.path.realpath(os.path.join(folder_before, before)) == os.path.realpath(now)


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
            "no space left on the disk; free space and start again: the run resumes from the "
            f"newest undamaged checkpoint. Received: workdir={path}"
        ) from None
