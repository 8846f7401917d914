"""The files of a run's folder, validated. A file that cannot be read is recorded, not raised."""

import base64
import datetime
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from igpt_tf import runtime
from igpt_tf.config import parse_bindings
from igpt_tf.errors import InputError
from igpt_tf.files import read_json
from igpt_tf.savedmodel.metadata import METADATA, read_metadata

Number = Annotated[float, Meta(ge=-1e30, le=1e30)]  # larger ones cannot be drawn
Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Interval = tuple[Fraction, Fraction]
Split = Literal["valid", "test"]

_CONFIG, _METRICS = "operative_config.gin", "metrics.jsonl"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


class MetricsLine(Struct):
    """A line of metrics.jsonl."""

    step: Count
    split: str
    nats_per_token: Number | None = None
    loss: Number | None = None
    accuracy: Fraction | None = None
    probe_accuracy: Fraction | None = None
    images_per_second: Number | None = None
    tokens_per_second: Number | None = None
    data_wait: Fraction | None = None
    peak_memory_gb: Number | None = None


class Hardware(Struct):
    """Part of `Start`."""

    cpu: str | None = None
    cores: Count | None = None
    memory_gb: Number | None = None
    accelerators: list[str] = []


class Start(Struct):
    """A line of environment.jsonl."""

    started: datetime.datetime | None = None
    command: str = ""
    versions: dict[str, str] = {}
    hardware: Hardware | None = None


class Data(Struct):
    """A data set."""

    name: str


class Result(Struct):
    """result.json of pretraining or, with accuracies, of fine-tuning."""

    step: Count
    nats_per_token: dict[str, Number] = {}
    baselines: dict[str, Number] = {}
    parameters: Count | None = None
    num_images: dict[str, Count] = {}
    accuracy: dict[str, Fraction] = {}
    accuracy_interval: dict[str, Interval] = {}
    learning_rate: Number | None = None
    generative_weight: Number | None = None
    classification_weight: Number | None = None
    from_scratch: bool = False
    refit: bool = False


class _ToolResult(Struct, kw_only=True):
    """What the results of linear_probe and low_data have in common."""

    saved_model: str
    data: Data
    num_images: dict[str, Count]
    num_classes: Count
    measured_on: Split


class Accuracies(Struct, kw_only=True):
    """Accuracies of a linear classifier, and the setting of its solver."""

    valid_accuracy: Fraction
    valid_interval: Interval | None = None
    test_accuracy: Fraction | None = None
    test_interval: Interval | None = None
    l2: Number | None = None
    learning_rate: Number | None = None


class ProbeRow(Accuracies, kw_only=True):
    """On the features of a layer."""

    layer: Count


class Concatenated(Accuracies, kw_only=True):
    """On the features of several layers side by side."""

    layers: Annotated[list[Count], Meta(min_length=1)]


class Baseline(ProbeRow, kw_only=True):
    """The best layer of other features, and all their layers."""

    layers: Annotated[list[ProbeRow], Meta(min_length=1)]


class LinearProbe(_ToolResult, kw_only=True):
    """linear_probe.json."""

    solver: Literal["l2", "learning_rate"]
    layers: Annotated[list[ProbeRow], Meta(min_length=1)]
    best_layer: ProbeRow
    concatenated: Concatenated | None = None
    baselines: dict[str, Baseline] = {}


class LowDataRow(Struct, kw_only=True):
    """Mean accuracy over random subsets, and its standard deviation."""

    labels_per_class: Count
    layer: Count | None = None
    valid_accuracy: Fraction
    valid_deviation: Fraction
    test_accuracy: Fraction | None = None
    test_deviation: Fraction | None = None

    def measured(self, split: Split) -> tuple[float | None, float | None]:
        """(accuracy, deviation) on a split."""
        return getattr(self, f"{split}_accuracy"), getattr(self, f"{split}_deviation")


class LowData(_ToolResult, kw_only=True):
    """low_data.json."""

    num_subsets: Count
    pretrained_network: Annotated[list[LowDataRow], Meta(min_length=1)]
    raw_pixels: Annotated[list[LowDataRow], Meta(min_length=1)]


class Evaluation(Struct, kw_only=True):
    """evaluate.json."""

    data: str
    split: str | None = None
    num_images: Count
    nats_per_token: Number
    standard_error: Number | None = None
    score: str = "likelihood"


@dataclass(frozen=True)
class Found:
    """A file in one of the folders.

    Attributes:
        folder: Its folder, relative to the run's folder if it lies inside.
        content: The validated content; the base64 text of a PNG.
    """

    folder: str
    content: object


class RunFolder:
    """A run's folder, finished or not.

    Args:
        path: The workdir.
        include: More folders with results of tools, or folders of such folders.

    Attributes:
        metadata: `read_metadata` of the newest SavedModel, None without one.
        unreadable: A line about each file that could not be read.

    Raises:
        InputError: A folder does not exist, or `path` is not a run's.
    """

    def __init__(self, path: str, include: Sequence[str] = ()):
        for folder in (path, *include):
            if not os.path.isdir(folder):
                raise InputError(f"the folder does not exist. Received: {folder}")
        if not any(os.path.isfile(os.path.join(path, name)) for name in (_CONFIG, _METRICS)):
            raise InputError(
                f"this is not the folder of a run: it has neither {_CONFIG} nor {_METRICS}; pass "
                f"the --workdir of a training run. Received: workdir={path}"
            )
        self.path = path
        self.name = os.path.basename(os.path.abspath(path))
        self.unreadable: list[str] = []
        self.config = self._text(_CONFIG)
        self.bindings = self._bindings()
        self.metrics = self._lines(_METRICS, MetricsLine)
        self.starts = self._lines(runtime.ENVIRONMENT_FILE, Start)
        self.result = self._json(os.path.join(path, "result.json"), Result)
        self.metadata = self._newest_metadata()
        inside = [child for folder in (path, *include) for child in self._subfolders(folder)]
        self._folders = list(dict.fromkeys([*include, *inside]))

    @property
    def last_step(self) -> int:
        """The last step in metrics.jsonl; 0 if there is none."""
        return max((line.step for line in self.metrics), default=0)

    def series(self, split: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of a number in metrics.jsonl."""
        points = [(one.step, getattr(one, name)) for one in self.metrics if one.split == split]
        return [(step, value) for step, value in points if value is not None]

    def results(self, file: str, schema: type) -> list[Found]:
        """What a tool wrote under that name in any of the folders."""
        found = [
            (folder, self._json(os.path.join(folder, file), schema)) for folder in self._folders
        ]
        return [Found(self._shown(one), content) for one, content in found if content is not None]

    def images(self, file: str, *, own: bool = False) -> list[Found]:
        """PNG files of that name in any of the folders, and in the run's own if `own`."""
        folders = [self.path, *self._folders] if own else self._folders
        found = [(folder, self._png(os.path.join(folder, file))) for folder in folders]
        return [Found(self._shown(one), content) for one, content in found if content is not None]

    def sample_grids(self, limit: int) -> list[tuple[int, str]]:
        """(step, base64 of the PNG) of at most `limit` grids of training, evenly chosen."""
        paths = glob.glob(os.path.join(glob.escape(self.path), "samples", "step_*.png"))
        named = [(re.search(r"step_(\d{1,18})\.png$", path), path) for path in paths]
        steps = sorted((int(match.group(1)), path) for match, path in named if match)
        count = min(limit, len(steps))
        chosen = {round(i * (len(steps) - 1) / max(count - 1, 1)) for i in range(count)}
        images = [(steps[i][0], self._png(steps[i][1])) for i in sorted(chosen)]
        return [(step, image) for step, image in images if image is not None]

    def is_own(self, found: Found) -> bool:
        """Whether a tool's result is about a model of this run."""
        model = os.path.abspath(found.content.saved_model)
        own = os.path.abspath(self.path) + os.sep
        return not os.path.isabs(found.folder) or model.startswith(own)

    def _shown(self, path: str) -> str:
        relative = os.path.relpath(path, self.path)
        return os.path.abspath(path) if relative.startswith(os.pardir) else relative

    def _record(self, path: str, reason: str) -> None:
        self.unreadable.append(f"{self._shown(path)} cannot be read ({reason})")

    def _read(self, path: str) -> bytes | None:
        if not os.path.isfile(path):
            return None
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            self._record(path, error.strerror or "cannot be read")
            return None

    def _text(self, name: str) -> str:
        return (self._read(os.path.join(self.path, name)) or b"").decode("utf-8", "replace")

    def _json(self, path: str, schema: type):
        if not os.path.isfile(path):
            return None
        try:
            shown = self._shown(path)
            return read_json(path, description=shown, fix="run its program again", schema=schema)
        except InputError as error:
            self.unreadable.append(str(error))
            return None

    def _lines(self, name: str, schema: type) -> list:
        content, rows, damaged = self._read(os.path.join(self.path, name)) or b"", [], 0
        for line in content.splitlines():
            try:
                rows.append(msgspec.json.decode(line, type=schema))
            except (ValueError, RecursionError):
                damaged += 1
        if damaged:
            lines = "1 damaged line is" if damaged == 1 else f"{damaged} damaged lines are"
            self.unreadable.append(f"{name}: {lines} left out")
        return rows

    def _png(self, path: str) -> str | None:
        content = self._read(path)
        if content is None:
            return None
        if not content.startswith(_PNG_START) or not content.endswith(_PNG_END):
            self._record(path, "not a complete PNG file")
            return None
        return base64.b64encode(content).decode("ascii")

    def _bindings(self) -> dict[str, str]:
        try:
            return parse_bindings(self.config)
        except InputError as error:
            self._record(os.path.join(self.path, _CONFIG), str(error))
            return {}

    def _newest_metadata(self) -> dict | None:
        versions = glob.glob(os.path.join(glob.escape(self.path), "export", "*", METADATA))
        folders = [path.removesuffix(os.sep + METADATA) for path in versions]
        numbered = [folder for folder in folders if os.path.basename(folder).isdecimal()]
        if not numbered:
            return None
        try:
            return read_metadata(max(numbered, key=lambda path: int(os.path.basename(path))))
        except InputError as error:
            self.unreadable.append(str(error))
            return None

    def _subfolders(self, path: str) -> list[str]:
        try:
            paths = [os.path.join(path, name) for name in sorted(os.listdir(path))]
        except OSError as error:
            self._record(path, error.strerror or "cannot be listed")
            return []
        return [child for child in paths if os.path.isdir(child)]
