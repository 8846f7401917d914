"""Holds a SavedModel to its contract by loading and asking it as TensorFlow Serving would."""

import dataclasses
import time

import numpy as np

from igpt_tf.errors import InputError
from igpt_tf.savedmodel import c_library as library
from igpt_tf.savedmodel import metadata as exported
from igpt_tf.savedmodel import requests
from igpt_tf.savedmodel import spec as contract
from igpt_tf.savedmodel import warmup_reader as warmup
from igpt_tf.savedmodel.c_library import StatusError
from igpt_tf.savedmodel.session import Session

# A server may lack the first kinds; the others answer differently every time.
_FORBIDDEN = ("Xla", "PyFunc", "EagerPyFunc", "RandomUniform", "RandomStandard", "Multinomial")
_TOLERANCE = 1e-4  # between one image alone and in a batch of three


@dataclasses.dataclass
class Row:
    """What one signature did.

    Attributes:
        name: Of the signature.
        inputs, outputs: name -> type and shape in words.
        milliseconds: Of the first call and of the second, batch size 1.
        problems: How it breaks the contract, in words.
    """

    name: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    milliseconds: tuple[float, ...] = ()
    problems: list[str] = dataclasses.field(default_factory=list)


class Check:
    """A SavedModel, loaded.

    Args:
        path: The SavedModel's folder, or the folder of its numbered versions.

    Attributes:
        path: The SavedModel's own folder.
        load_milliseconds: What loading took.

    Raises:
        InputError: There is no SavedModel of ours, or it cannot be loaded.
    """

    def __init__(self, path: str):
        self.path = exported.find(path)
        self._metadata = exported.read_metadata(self.path)
        library.load()
        start = time.perf_counter()
        try:
            self._session = Session(self.path)
        except StatusError as error:
            raise InputError(
                f"the SavedModel breaks the contract: it cannot be loaded ({error}); "
                f"export it again. Received: path={self.path}"
            ) from None
        self.load_milliseconds = 1000 * (time.perf_counter() - start)
        self._promised = contract.promised(self._metadata)
        self._sizes = contract.sizes_of(self._metadata)
        self._kind = contract.kind_of(self._metadata)

    def run(self) -> dict:
        """Asks everything; a report for JSON, whose "problems" are the breaches in words."""
        rows = [self._row(name) for name in sorted(self._promised.keys() | self._names)]
        num_records, of_graph = self._warm_up()
        of_graph += [*self._graph_problems(), *self._default_problems(rows)]
        return {
            "path": self.path,
            "kind": self._kind,
            "step": self._metadata["step"],
            "tensorflow": library.version(),
            "load_milliseconds": self.load_milliseconds,
            "num_warmup_records": num_records,
            "signatures": [dataclasses.asdict(row) for row in rows],
            "problems": of_graph + [problem for row in rows for problem in row.problems],
        }

    def close(self) -> None:
        """Frees the model."""
        self._session.close()

    @property
    def _names(self):
        return self._session.signatures.keys()

    def _row(self, name: str) -> Row:
        if name not in self._promised:
            wrong = f"{name} is there, which a model of this kind ({self._kind}) must not have"
            return Row(name, {}, {}, problems=[wrong])
        inputs, outputs = self._promised[name]
        row = Row(name, _words(inputs), _words(outputs))
        if name not in self._names:
            row.problems.append(f"{name} is missing")
            return row
        signature = self._session.signatures[name]
        row.problems += contract.differences(name, signature, inputs, outputs)
        if not row.problems:
            try:
                self._ask(row, inputs, outputs)
                self._ask_absurd(row, inputs)
            except StatusError as error:
                row.problems.append(f"{name} fails: {error}")
        return row

    def _ask(self, row: Row, inputs: dict, outputs: dict) -> None:
        """Twice one image, then three."""
        one = requests.sound(inputs, self._sizes, 1)
        (answer, first), (again, second) = (self._timed(row.name, one) for _ in range(2))
        row.milliseconds = (first, second)
        if any(not np.array_equal(answer[key], again[key]) for key in answer):
            row.problems.append(f"{row.name} answers the same request differently")
        three, _ = self._timed(row.name, requests.sound(inputs, self._sizes, 3))
        for batch_size, found in ((1, answer), (3, three)):
            row.problems += _wrong(row.name, found, outputs, batch_size)
        if not row.problems and not _agree(answer, three, "seed" in inputs):
            row.problems.append(f"{row.name} answers differently in a batch")

    def _timed(self, name: str, inputs: dict) -> tuple[dict, float]:
        start = time.perf_counter()
        answer = self._session.run(name, inputs)
        return answer, 1000 * (time.perf_counter() - start)

    def _ask_absurd(self, row: Row, inputs: dict) -> None:
        """Whatever nobody can want is refused in clear words, and the model lives on."""
        for key, value, word in requests.absurd(self._sizes):
            if key not in inputs:
                continue
            request = {**requests.sound(inputs, self._sizes, 1), key: value}
            try:
                self._session.run(row.name, request)
                row.problems.append(f"{row.name} accepts {key}={_shown(value)}")
            except StatusError as error:
                if error.name != "INVALID_ARGUMENT" or word not in error.message:
                    row.problems.append(
                        f"{row.name} refuses {key}={_shown(value)} without saying so ({error})"
                    )

    def _graph_problems(self) -> list[str]:
        graph = self._session.graph_def
        functions = graph.library.function
        must = [f.signature.name for f in functions if _must_compile(f.attr)]
        nodes = [*graph.node, *(node for function in functions for node in function.node_def)]
        operations = sorted({node.op for node in nodes if node.op.startswith(_FORBIDDEN)})
        must += [node.name for node in nodes if _must_compile(node.attr)]
        found = [f"the function {must[0]} must be compiled by XLA"] if must else []
        return found + [f"the graph holds the operation {name}" for name in operations]

    def _default_problems(self, rows: list[Row]) -> list[str]:
        """`serving_default` answers as the signature it stands for."""
        if any(row.problems for row in rows):
            return []
        like = "classify" if contract.is_finetuned(self._metadata) else "features"
        request = requests.sound(self._promised[like][0], self._sizes, 1)
        default, named = (self._session.run(name, request) for name in ("serving_default", like))
        same = all(np.array_equal(default[key], named[key]) for key in named)
        return [] if same else [f"serving_default does not answer as {like}"]

    def _warm_up(self) -> tuple[int, list[str]]:
        """The number of warm-up records, none being allowed; and problems.

        A record that fails keeps the server from loading the model.
        """
        count = 0
        try:
            for name, inputs in warmup.read(self.path):
                self._session.run(name, inputs)
                count += 1
        except (InputError, StatusError) as error:
            return count, [f"warm-up record {count + 1} fails ({error})"]
        return count, []


def _words(specs: dict) -> dict[str, str]:
    return {key: str(spec) for key, spec in specs.items()}


def _shown(value: np.ndarray) -> str:
    return " ".join(str(value).split())[:40]


def _must_compile(attributes) -> bool:
    return any(entry.key == "_XlaMustCompile" and entry.value.b for entry in attributes)


def _wrong(name: str, answer: dict, outputs: dict, batch_size: int) -> list[str]:
    """Answers of another type or shape than promised, or not finite."""
    found = []
    for key, spec in outputs.items():
        array, spec = answer[key], spec.of({"B": batch_size})
        if not spec.admits(array.dtype.name, array.shape):
            shown = f"{array.dtype.name}{list(array.shape)}"
            found.append(f"{name} returned {key} as {shown}, not {spec}")
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            found.append(f"{name} returned {key} that are not finite")
    return found


def _agree(one: dict, three: dict, drawn: bool) -> bool:
    """Whether the first image's answer is the same in a batch.

    Not asked of drawn images: a probability that differs in its last bit may tip a pixel.
    """
    return drawn or all(
        np.allclose(one[key][0], three[key][0], rtol=_TOLERANCE, atol=_TOLERANCE) for key in one
    )
