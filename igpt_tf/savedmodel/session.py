"""A SavedModel as TensorFlow Serving loads and runs it."""

import ctypes
import dataclasses

import numpy as np

from igpt_tf.savedmodel import c_library as library
from igpt_tf.savedmodel import tensors
from igpt_tf.savedmodel.c_library import StatusError
from igpt_tf.savedmodel.protos import MetaGraphDef

_TAG = b"serve"


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What a signature says of one input or output.

    Attributes:
        tensor: Its name in the graph, e.g. "serving_default_images:0".
        dtype: NumPy's name of it, or "string".
        shape: Sizes, None where any will do; None altogether if not even the rank is known.
    """

    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs by name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


class Session:
    """A SavedModel in memory.

    Args:
        path: The SavedModel's own folder.

    Attributes:
        graph_def: What was loaded, for those who look for operations.
        signatures: dict of `Signature`.

    Raises:
        StatusError: It cannot be loaded.
    """

    def __init__(self, path: str):
        c = library.load()
        self._graph = c.TF_NewGraph()
        options, buffer = c.TF_NewSessionOptions(), c.TF_NewBuffer()
        tags = (ctypes.c_char_p * 1)(_TAG)
        arguments = (options, None, path.encode(), tags, 1, self._graph, buffer)
        try:
            self._session = library.call("TF_LoadSessionFromSavedModel", *arguments)
            found = buffer.contents
            content = ctypes.string_at(found.data, found.length)
        finally:
            c.TF_DeleteSessionOptions(options)
            c.TF_DeleteBuffer(buffer)
        meta_graph = MetaGraphDef.FromString(content)
        self.graph_def = meta_graph.graph_def
        self.signatures = signatures_of(meta_graph)

    def run(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers a request.

        Args:
            name: Of the signature.
            inputs: An array for each of its inputs, of its type; bytes in arrays of objects.

        Raises:
            StatusError: There is no such signature; the inputs are not its own; the graph refuses
                their values, or fails.
        """
        signature = self._signature(name, inputs)
        wanted = list(signature.outputs)
        given = {signature.inputs[key].tensor: array for key, array in inputs.items()}
        answers = self._run(given, [signature.outputs[key].tensor for key in wanted])
        return dict(zip(wanted, answers, strict=True))

    def _signature(self, name: str, inputs: dict[str, np.ndarray]) -> Signature:
        """The signature, whose types the inputs have. (The graph itself checks shapes.)"""
        if name not in self.signatures:
            raise StatusError(3, f'Serving signature name: "{name}" not found in signature def')
        infos = self.signatures[name].inputs
        given = {key: tensors.name_of(array) for key, array in inputs.items()}
        wanted = {key: info.dtype for key, info in infos.items()}
        if given != wanted:
            raise StatusError(3, f"{name} takes {wanted}. Received: {given}")
        return self.signatures[name]

    def close(self) -> None:
        """Frees what the library holds."""
        library.call("TF_CloseSession", self._session)
        library.call("TF_DeleteSession", self._session)
        library.load().TF_DeleteGraph(self._graph)

    def _run(self, given: dict[str, np.ndarray], wanted: list[str]) -> list[np.ndarray]:
        feeds, fetches = self._outputs(given), self._outputs(wanted)
        values = (ctypes.c_void_p * len(given))()
        answers = (ctypes.c_void_p * len(wanted))()
        try:
            values[:] = [tensors.create(array) for array in given.values()]
            library.call(
                *("TF_SessionRun", self._session, None, feeds, values, len(given)),
                *(fetches, answers, len(wanted), None, 0, None),
            )
            return [tensors.read(answer) for answer in answers]
        finally:
            for tensor in filter(None, [*values, *answers]):
                tensors.delete(tensor)

    def _outputs(self, names):
        """`TF_Output[]` of tensors called "operation:index"."""
        outputs = [self._output(*name.rsplit(":", 1)) for name in names]
        return (library.Output * len(outputs))(*outputs)

    def _output(self, name: str, index: str):
        found = library.load().TF_GraphOperationByName(self._graph, name.encode())
        if not found:
            raise StatusError(5, f"a signature names an operation that is not there: {name}")
        return library.Output(found, int(index))


def signatures_of(message) -> dict[str, Signature]:
    """Of a `MetaGraphDef` or a `SignatureDefMap`, without TensorFlow's own `__saved_model...`."""
    return {
        entry.key: Signature(_infos(entry.value.inputs), _infos(entry.value.outputs))
        for entry in sorted(message.signature_def, key=lambda entry: entry.key)
        if not entry.key.startswith("__")
    }


def _infos(entries) -> dict[str, TensorInfo]:
    return {entry.key: _info(entry.value) for entry in sorted(entries, key=lambda e: e.key)}


def _info(info) -> TensorInfo:
    sizes = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    shape = None if info.tensor_shape.unknown_rank else sizes
    return TensorInfo(info.name, tensors.NAMES.get(info.dtype, f"type {info.dtype}"), shape)
