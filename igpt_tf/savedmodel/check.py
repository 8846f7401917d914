"""Holds a SavedModel to its contract by loading and asking it as TensorFlow Serving would."""

import dataclasses
import time

import numpy as np

from igpt_tf.errors import InputError
from igpt_tf.sampling.params import MAX_IMAGES
from igpt_tf.savedmodel import c_library as library
from igpt_tf.savedmodel import metadata as exported
from igpt_tf.savedmodel import spec
from igpt_tf.savedmodel import warmup_reader as warmup
from igpt_tf.savedmodel.c_library import StatusError
from igpt_tf.savedmodel.session import Session, TensorInfo
from igpt_tf.savedmodel.spec import TensorSpec, byte_strings, example_request

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
        self._promised = spec.available_signatures(self._metadata)
        self._sizes = spec.sizes_of(self._metadata)
        self._kind = _kind(self._metadata)

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
        promised = self._promised[name]
        inputs, outputs = promised.inputs, promised.outputs
        row = Row(name, _words(inputs), _words(outputs))
        if name not in self._names:
            row.problems.append(f"{name} is missing")
            return row
        signature = self._session.signatures[name]
        row.problems += _differences(name, signature, inputs, outputs)
        if not row.problems:
            try:
                self._ask(row, promised)
                self._ask_absurd(row, promised)
            except StatusError as error:
                row.problems.append(f"{name} fails: {error}")
        return row

    def _ask(self, row: Row, promised: spec.Signature) -> None:
        """Twice one image, then three."""
        outputs = promised.outputs
        one = example_request(promised, self._sizes)
        (answer, first), (again, second) = (self._timed(row.name, one) for _ in range(2))
        row.milliseconds = (first, second)
        if any(not np.array_equal(answer[key], again[key]) for key in answer):
            row.problems.append(f"{row.name} answers the same request differently")
        three, _ = self._timed(row.name, example_request(promised, self._sizes, 3))
        for batch_size, found in ((1, answer), (3, three)):
            row.problems += _wrong(row.name, found, outputs, batch_size)
        if not row.problems and not _agree(answer, three, promised.is_random):
            row.problems.append(f"{row.name} answers differently in a batch")

    def _timed(self, name: str, inputs: dict) -> tuple[dict, float]:
        start = time.perf_counter()
        answer = self._session.run(name, inputs)
        return answer, 1000 * (time.perf_counter() - start)

    def _ask_absurd(self, row: Row, promised: spec.Signature) -> None:
        """Whatever nobody can want is refused in clear words, and the model lives on."""
        for key, value, word in _invalid_inputs(self._sizes):
            if key not in promised.inputs:
                continue
            request = {**example_request(promised, self._sizes), key: value}
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
        like = spec.default_signature(self._metadata)
        request = example_request(self._promised[like], self._sizes)
        default, named = (self._session.run(name, request) for name in (spec.DEFAULT, like))
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
    for key, promised in outputs.items():
        array, tensor = answer[key], promised.with_sizes({"B": batch_size})
        if not tensor.accepts(array.dtype.name, array.shape):
            shown = f"{array.dtype.name}{list(array.shape)}"
            found.append(f"{name} returned {key} as {shown}, not {tensor}")
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


def _kind(metadata: dict) -> str:
    """ "autoregressive" or "masked", and whether fine-tuned."""
    kind = "autoregressive" if metadata["model"]["causal"] else "masked"
    return f"{kind}, fine-tuned" if metadata.get("task") else kind


def _differences(name: str, signature, inputs: dict, outputs: dict) -> list[str]:
    """How a signature differs from the promised inputs and outputs, in words."""
    return [
        *_tensor_differences(f"{name} takes", signature.inputs, inputs),
        *_tensor_differences(f"{name} returns", signature.outputs, outputs),
    ]


def _tensor_differences(
    what: str, infos: dict[str, TensorInfo], specs: dict[str, TensorSpec]
) -> list[str]:
    found = []
    for key in sorted(infos.keys() | specs.keys()):
        if key not in specs:
            found.append(f"{what} {key}, which the contract does not know")
        elif key not in infos:
            found.append(f"{what} no {key} ({specs[key]})")
        elif not specs[key].accepts(infos[key].dtype, infos[key].shape):
            found.append(f"{what} {key} as {_words_of(infos[key])}, not {specs[key]}")
        elif "B" in specs[key].axes and infos[key].shape[specs[key].axes.index("B")] is not None:
            found.append(f"{what} {key} with a fixed batch size, {_words_of(infos[key])}")
    return found


def _words_of(info: TensorInfo) -> str:
    if info.shape is None:
        return f"{info.dtype} of any shape"
    return f"{info.dtype}[{','.join('B' if size is None else str(size) for size in info.shape)}]"


def _invalid_inputs(sizes: dict[str, int]) -> list[tuple[str, np.ndarray, str]]:
    """(input, a value of it that must be refused, a word of the refusal)."""
    return [
        ("image_bytes", byte_strings([b"not an image"]), "PNG or JPEG"),
        ("image_bytes", byte_strings([b""]), "bytes"),
        ("image_bytes", byte_strings([_image_of_many_pixels()]), "pixels"),
        ("num_images", np.int32(0), "num_images"),
        ("num_images", np.int32(MAX_IMAGES + 1), "num_images"),
        ("num_given", np.int32(sizes["T"] + 1), "num_given"),
        ("num_given", np.int32(-1), "num_given"),
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
