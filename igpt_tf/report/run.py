"""What a run's folder holds, read as it is: an unfinished run lacks parts, a damaged line counts as
absent."""

import glob
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from igpt_tf import runtime
from igpt_tf.errors import InputError
from igpt_tf.savedmodel.metadata import METADATA, read_metadata

_MARKS = ("operative_config.gin", "metrics.jsonl")


@dataclass(frozen=True)
class Report:
    """The JSON of a tool.

    Attributes:
        folder: That holds it, seen from the run's folder if it lies inside.
        content: The JSON.
    """

    folder: str
    content: dict


@dataclass(frozen=True)
class Run:
    """A run's files.

    Attributes:
        path: The folder.
        metrics: Lines of metrics.jsonl.
        result: result.json, or None while the run goes on.
        metadata: Of the newest SavedModel, or None if there is none or it is damaged.
        config: Text of operative_config.gin, or None.
        starts: Lines of environment.jsonl.
        folders: Where results of tools may lie: the run's own sub-folders and the included ones.
    """

    path: str
    metrics: list[dict]
    result: dict | None
    metadata: dict | None
    config: str | None
    starts: list[dict]
    folders: list[str]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return os.path.basename(os.path.abspath(self.path))

    @property
    def last_step(self) -> int:
        """The last step that was reported; 0 before the first report."""
        return max((line["step"] for line in self.metrics), default=0)

    def binding(self, name: str) -> str | None:
        """The value of a gin name, as text."""
        found = re.search(rf"^{re.escape(name)} = (.+)$", self.config or "", re.MULTILINE)
        return found.group(1) if found else None

    def curve(self, split: str, name: str) -> list[tuple[float, float]]:
        """(step, value) points of a number in metrics.jsonl."""
        return [
            (line["step"], line[name])
            for line in self.metrics
            if line.get("split") == split and _is_number(line.get(name))
        ]

    def reports(self, file: str) -> list[Report]:
        """What a tool wrote under that name in any of the folders."""
        found = [(folder, read_json(os.path.join(folder, file))) for folder in self.folders]
        return [Report(self._seen(folder), content) for folder, content in found if content]

    def made(self, report: Report) -> bool:
        """Whether a report is about a model of this run: by its place, or by its own words."""
        model = os.path.abspath(str(report.content.get("saved_model")))
        own = os.path.abspath(self.path) + os.sep
        return not os.path.isabs(report.folder) or model.startswith(own)

    def _seen(self, folder: str) -> str:
        inside = os.path.relpath(folder, self.path)
        return os.path.abspath(folder) if inside.startswith(os.pardir) else inside

    def pictures(self, file: str) -> list[str]:
        """Paths of the pictures of that name in any of the folders."""
        paths = [os.path.join(folder, file) for folder in self.folders]
        return [path for path in paths if os.path.isfile(path)]

    def grids(self) -> list[tuple[int, str]]:
        """(step, path) of the pictures drawn in training, in order."""
        paths = glob.glob(os.path.join(glob.escape(self.path), "samples", "step_*.png"))
        steps = [(re.search(r"step_(\d+)\.png$", path), path) for path in paths]
        return sorted((int(found.group(1)), path) for found, path in steps if found)


def read_run(path: str, include: Sequence[str] = ()) -> Run:
    """Reads a run's folder.

    Args:
        path: The workdir.
        include: More folders with results of tools, or folders of such.

    Raises:
        InputError: A folder does not exist, or `path` is no run's.
    """
    for folder in (path, *include):
        if not os.path.isdir(folder):
            raise InputError(f"the folder does not exist. Received: {folder}")
    if not any(os.path.isfile(os.path.join(path, name)) for name in _MARKS):
        raise InputError(
            f"this folder is no run: it lacks {' and '.join(_MARKS)}; give the --workdir of a "
            f"training. Received: workdir={path}"
        )
    return Run(
        path=path,
        metrics=[line for line in _lines(path, "metrics.jsonl") if _is_number(line.get("step"))],
        result=read_json(os.path.join(path, "result.json")),
        metadata=_metadata(path),
        config=_text(os.path.join(path, "operative_config.gin")),
        starts=_lines(path, runtime.ENVIRONMENT_FILE),
        folders=_folders(path, include),
    )


def read_json(path: str) -> dict | None:
    """The object in a file; None if there is no file or no object in it."""
    try:
        content = json.loads(_text(path) or "")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _folders(path: str, include: Sequence[str]) -> list[str]:
    inside = [child for one in (path, *include) for child in _children(one)]
    return list(dict.fromkeys([*include, *inside]))


def _children(path: str) -> list[str]:
    paths = (os.path.join(path, name) for name in sorted(os.listdir(path)))
    return [child for child in paths if os.path.isdir(child)]


def _metadata(path: str) -> dict | None:
    versions = glob.glob(os.path.join(glob.escape(path), "export", "*", METADATA))
    numbered = [one for one in versions if one.split(os.sep)[-3].isdecimal()]
    if not numbered:
        return None
    newest = max(numbered, key=lambda one: int(one.split(os.sep)[-3]))
    try:
        return read_metadata(newest.removesuffix(os.sep + METADATA))
    except InputError:
        return None


def _lines(path: str, name: str) -> list[dict]:
    lines = (_text(os.path.join(path, name)) or "").splitlines()
    parsed = map(_parsed, lines)
    return [line for line in parsed if isinstance(line, dict)]


def _parsed(line: str):
    try:
        return json.loads(line)
    except ValueError:
        return None


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
