"""Checks a SavedModel against the specification by running it as TensorFlow Serving would."""

import dataclasses
import itertools
import os
import time

import numpy as np
from google.protobuf.message import DecodeError

from igpt_tf import files, formatting
from igpt_tf.errors import InputError, one_line
from igpt_tf.sampling.params import MAX_IMAGES
from igpt_tf.savedmodel import c_api, protos, spec
from igpt_tf.savedmodel.c_api import Session, StatusError
from igpt_tf.savedmodel.metadata import GRAPH, find, read_metadata
from igpt_tf.savedmodel.spec import Signature, byte_strings, example_request
from igpt_tf.savedmodel.warmup import read_warmup

_TOLERANCE = 1e-4  # between one image alone and in a batch of three

# A signature computes; it does not touch files, the network, the clock or the model's state. This
# is an allow-list: of the operations that TensorFlow registers as stateful (files, sockets, queues,
# tables, datasets, Python, random numbers, variables; also all that it may add) only these may be
# used. Operations registered as stateless compute their outputs from their inputs, except the few
# in `_FORBIDDEN`.
_ALLOWED_STATEFUL = {
    *("VarHandleOp", "ReadVariableOp", "StatefulPartitionedCall", "If", "Case", "While"),
    *("Assert", "Empty"),
}
# What TensorFlow itself adds to load and store the variables; out of reach of all signatures.
_ALLOWED_LOADING = {
    *("AssignVariableOp", "DisableCopyOnRead", "RestoreV2", "SaveV2", "MergeV2Checkpoints"),
}
# Registered as stateless, but they read files, run Python or send tensors to a debugger; or they
# are compiled by XLA, which a server may lack.
_FORBIDDEN = {
    *("ReadFile", "MatchingFiles", "InitializeTableFromTextFile", "GenerateVocabRemapping"),
    *("PyFuncStateless",),
}
_FORBIDDEN_PARTS = ("Dataset", "Debug", "Xla")


@dataclasses.dataclass
class _Row:
    """Result of one signature.

    Attributes:
        name: Name of the signature.
        inputs, outputs: name -> type and shape as text.
        milliseconds: Durations of the first and second call with batch size 1.
        problems: How it differs from the specification.
    """

    name: str
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)
    milliseconds: tuple[float, ...] = ()
    problems: list[str] = dataclasses.field(default_factory=list)


def check_saved_model(path: str) -> dict:
    """Loads a SavedModel through TensorFlow's C library and runs every signature.

    A graph that holds forbidden operations is reported and neither loaded nor run.

    Args:
        path: The SavedModel's folder, or the folder of its numbered versions.

    Returns:
        A JSON-able report: "path", "kind", "step", "score", "tensorflow" (version),
        "load_milliseconds" and "num_warmup_records" (None if it was not loaded), "signatures" (a
        dict each: "name", "inputs", "outputs", "milliseconds", "problems") and "problems", the
        differences from the specification in words.

    Raises:
        InputError: The SavedModel was not written by this package or cannot be loaded.
    """
    path = find(path)
    metadata = read_metadata(path)
    report = {
        "path": path,
        "kind": _kind(metadata),
        "step": metadata["step"],
        "score": metadata["score"],
        "tensorflow": c_api.version(),
        "load_milliseconds": None,
        "num_warmup_records": None,
    }
    meta_graph = _read_graph(path)
    found = protos.read_signatures(meta_graph)
    rows = [
        _compare(name, found, metadata)
        for name in sorted({*spec.available_signatures(metadata), *found})
    ]
    problems = graph_problems(meta_graph)
    if not problems:
        start = time.perf_counter()
        session = _load(path)
        report["load_milliseconds"] = 1000 * (time.perf_counter() - start)
        try:
            running = _Running(session, metadata)
            for row in rows:
                if not row.problems:
                    running.check_signature(row)
            report["num_warmup_records"], problems = running.check_warmup(path)
            if not any(row.problems for row in rows):
                problems += running.check_default()
        finally:
            session.close()
    return {
        **report,
        "signatures": [dataclasses.asdict(row) for row in rows],
        "problems": problems + [problem for row in rows for problem in row.problems],
    }


def _read_graph(path: str):
    """Reads the `MetaGraphDef` without loading it."""
    try:
        with open(os.path.join(path, GRAPH), "rb") as file:
            [meta_graph] = protos.SavedModel.FromString(file.read()).meta_graphs
    except (OSError, ValueError, DecodeError) as error:
        raise _cannot_be_loaded(path, error) from None
    return meta_graph


def _load(path: str) -> Session:
    try:
        return Session(files.path_without_patterns(path))
    except StatusError as error:
        raise _cannot_be_loaded(path, error) from None


def _cannot_be_loaded(path: str, error: Exception) -> InputError:
    return InputError(
        f"the SavedModel cannot be loaded ({one_line(str(error))}); export it again. "
        f"Received: path={path}"
    )


def _compare(name: str, found: dict[str, Signature], metadata: dict) -> _Row:
    """Compares a signature of the graph with the specification."""
    promised = spec.available_signatures(metadata).get(name)
    if promised is None:
        problem = f"{name} exists, but a model of this kind ({_kind(metadata)}) has none"
        return _Row(name, problems=[problem])
    row = _Row(name, _as_text(promised.inputs), _as_text(promised.outputs))
    if name not in found:
        row.problems.append(f"{name} is missing")
    else:
        row.problems += spec.differences(found[name], promised)
    return row


class _Running:
    """Checks of a loaded model by requests."""

    def __init__(self, session: Session, metadata: dict):
        self._session, self._metadata = session, metadata
        self._promised, self._sizes = spec.available_signatures(metadata), spec.sizes_of(metadata)

    def check_signature(self, row: _Row) -> None:
        """Adds times and problems to the row of a signature."""
        promised = self._promised[row.name]
        try:
            self._check_answers(row, promised)
            self._check_refusals(row, promised)
        except StatusError as error:
            row.problems.append(f"{row.name} fails: {error}")

    def _check_answers(self, row: _Row, promised: Signature) -> None:
        """Sends one image twice, then three images."""
        one = example_request(promised, self._sizes)
        (answer, first), (again, second) = (self._timed(row.name, one) for _ in range(2))
        row.milliseconds = (first, second)
        if any(not np.array_equal(answer[key], again[key]) for key in answer):
            row.problems.append(f"{row.name} answers the same request differently")
        three, _ = self._timed(row.name, example_request(promised, self._sizes, 3))
        for batch_size, found in ((1, answer), (3, three)):
            row.problems += _answer_problems(found, promised, batch_size)
        # Generated pixels are not compared: the last bit of a probability may decide one.
        if not row.problems and not promised.is_random and not _agree(answer, three):
            row.problems.append(f"{row.name} answers differently in a batch")

    def _timed(self, name: str, inputs: dict) -> tuple[dict, float]:
        start = time.perf_counter()
        answer = self._session.run(name, inputs)
        return answer, 1000 * (time.perf_counter() - start)

    def _check_refusals(self, row: _Row, promised: Signature) -> None:
        """Invalid inputs must be rejected with an error that names them."""
        for name, value, word in _invalid_inputs(self._sizes):
            if name not in promised.inputs:
                continue
            request = {**example_request(promised, self._sizes), name: value}
            shown = f"{name}={' '.join(str(value).split())[:40]}"
            try:
                self._session.run(row.name, request)
                row.problems.append(f"{row.name} accepts {shown}")
            except StatusError as error:
                if error.name != "INVALID_ARGUMENT" or word not in error.message:
                    row.problems.append(f"{row.name} rejects {shown} for another reason ({error})")

    def check_default(self) -> list[str]:
        """`serving_default` must answer as the signature that it stands for."""
        name = spec.default_signature(self._metadata)
        request = example_request(self._promised[name], self._sizes)
        default, named = (self._session.run(each, request) for each in (spec.DEFAULT, name))
        same = all(np.array_equal(default[key], named[key]) for key in named)
        return [] if same else [f"{spec.DEFAULT} does not answer as {name}"]

    def check_warmup(self, path: str) -> tuple[int, list[str]]:
        """Number of warm-up records, and problems: a record that fails stops the server's load."""
        count = 0
        try:
            for name, inputs in read_warmup(path):
                self._session.run(name, inputs)
                count += 1
        except (InputError, StatusError) as error:
            return count, [f"warm-up record {count + 1} fails ({error})"]
        return count, []


def graph_problems(meta_graph) -> list[str]:
    """Operations and functions of a `MetaGraphDef` that a server must not run, in words."""
    graph_def = meta_graph.graph_def
    names = protos.read_tensor_names(meta_graph).values()
    fetched = [tensor for each in names for tensor in each.outputs.values()]
    functions = {function.signature.name: function for function in graph_def.library.function}
    everything = [*graph_def.node, *(n for f in functions.values() for n in f.node_def)]
    must_compile = [
        *(name for name, function in functions.items() if _must_compile(function.attr)),
        *(node.name for node in everything if _must_compile(node.attr)),
    ]
    used = {node.op for node in everything}
    used_by_signatures = {node.op for node in _reachable_nodes(graph_def, functions, fetched)}
    stateful = c_api.stateful_operations()
    forbidden = {
        *(op for op in used if op in _FORBIDDEN or any(part in op for part in _FORBIDDEN_PARTS)),
        *(used & stateful - _ALLOWED_STATEFUL - _ALLOWED_LOADING),
        *(used_by_signatures & stateful - _ALLOWED_STATEFUL),
    }
    return [
        *(f"the function {name} must be compiled by XLA" for name in must_compile[:1]),
        *(f"the graph has the operation {op}" for op in sorted(forbidden)),
    ]


def _reachable_nodes(graph_def, functions: dict, fetched: list[str]) -> list:
    """Nodes that the fetched tensors depend on, those of called functions included."""
    by_name = {node.name: node for node in graph_def.node}
    names = (tensor.split(":")[0] for tensor in fetched)
    waiting = [by_name[name] for name in names if name in by_name]
    found, called = {}, set()
    while waiting:
        node = waiting.pop()
        if id(node) in found:
            continue
        found[id(node)] = node
        inputs = (name.lstrip("^").split(":")[0] for name in node.input)
        waiting += [by_name[name] for name in inputs if name in by_name]
        new = {f.name for attr in node.attr for f in (attr.value.func, *attr.value.list.func)}
        for name in (new - called) & functions.keys():
            waiting += functions[name].node_def
        called |= new
    return list(found.values())


def format_report(report: dict) -> str:
    """A report as text: what was loaded, then a table with an input and output per line."""
    header = ("signature", "inputs", "outputs", "first ms", "second ms", "ok")
    rows = [line for row in report["signatures"] for line in _lines(row)]
    loaded = "not loaded"
    if report["load_milliseconds"] is not None:
        loaded = (
            f"loaded by TensorFlow {report['tensorflow']}'s C library in "
            f"{report['load_milliseconds']:.0f} ms; {report['num_warmup_records']} warm-up records"
        )
    return (
        f"{report['path']}: {report['kind']} model of step {report['step']}; `score` is a "
        f"{report['score']}; {loaded}\n\n" + formatting.table(header, rows, left=3)
    )


def format_problems(report: dict) -> str:
    """The problems of a report in one line, the first in full."""
    first, *others = report["problems"]
    more = f", and {len(others)} more: see the report" if others else ""
    return (
        f"the SavedModel does not meet the specification: {first}{more}; export it again. "
        f"Received: path={report['path']}"
    )


def _lines(row: dict) -> list[tuple]:
    columns = (row["inputs"], row["outputs"])
    texts = [[f"{name} {text}" for name, text in column.items()] for column in columns]
    pairs = list(itertools.zip_longest(*texts, fillvalue="")) or [("", "")]
    times = [f"{value:.1f}" for value in row["milliseconds"]] or ["", ""]
    first = (row["name"], *pairs[0], *times, "no" if row["problems"] else "yes")
    return [first, *(("", *pair, "", "", "") for pair in pairs[1:])]


def _kind(metadata: dict) -> str:
    """Name of the objective, and whether the model is fine-tuned."""
    return metadata["objective"]["name"] + (", fine-tuned" if metadata["task"] else "")


def _as_text(specs: dict) -> dict[str, str]:
    return {name: str(tensor) for name, tensor in specs.items()}


def _must_compile(attributes) -> bool:
    return any(entry.key == "_XlaMustCompile" and entry.value.b for entry in attributes)


def _answer_problems(answer: dict, promised: Signature, batch_size: int) -> list[str]:
    """Arrays of a type or shape other than promised, or that are not finite."""
    problems = []
    for name, tensor in promised.with_sizes({"B": batch_size}).outputs.items():
        array = answer[name]
        if not tensor.accepts(array.dtype.name, array.shape):
            shown = f"{array.dtype.name}{list(array.shape)}"
            problems.append(f"{promised.name} returned {name} as {shown}, not {tensor}")
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            problems.append(f"{promised.name} returned {name} with values that are not finite")
    return problems


def _agree(one: dict, three: dict) -> bool:
    """Whether the first image has the same answer in a batch."""
    return all(
        np.allclose(one[key][0], three[key][0], rtol=_TOLERANCE, atol=_TOLERANCE) for key in one
    )


def _invalid_inputs(sizes: dict[str, int]) -> list[tuple[str, np.ndarray, str]]:
    """(input, a value that must be rejected, a word of the error)."""
    return [
        ("image_bytes", byte_strings([b"not an image"]), "PNG, JPEG"),
        ("image_bytes", byte_strings([b""]), "empty"),
        ("image_bytes", byte_strings([_image_of_many_pixels()]), "pixels"),
        ("num_images", np.int32(0), "num_images"),
        ("num_images", np.int32(MAX_IMAGES + 1), "num_images"),
        ("num_given", np.int32(sizes["T"] + 1), "num_given"),
        ("num_given", np.int32(-1), "num_given"),
        ("num_rounds", np.int32(0), "num_rounds"),
        ("temperature", np.float32("nan"), "temperature"),
        ("temperature", np.float32("inf"), "temperature"),
        ("temperature", np.float32(-1), "temperature"),
        ("top_k", np.int32(-1), "top_k"),
        ("top_p", np.float32(0), "top_p"),
        ("top_p", np.float32(1.5), "top_p"),
        ("tokens", np.full((1, sizes["T"]), sizes["V"], "int32"), "tokens"),
    ]


def _image_of_many_pixels() -> bytes:
    """A small PNG file whose header declares 2^30 pixels."""
    example = example_request(spec.SIGNATURES["features_bytes"], {"H": 4, "W": 4})
    content = bytearray(example["image_bytes"][0])
    content[16:24] = (2**15).to_bytes(4, "big") * 2
    return bytes(content)
