"""TensorFlow's C library through ctypes: loads and runs a SavedModel as TensorFlow Serving does.

TensorFlow Serving is built on the same loader and session. TensorFlow's Python package is not
imported; only the shared libraries of its installation are used.

Source: tensorflow/c/c_api.h, tf_tensor.h, tf_tstring.h.
"""

import ctypes
import functools
import importlib.util
import os

import numpy as np

from igpt_tf.errors import InputError, one_line
from igpt_tf.savedmodel import protos

_LIBRARIES = ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")
_TAG = b"serve"
_STRING_BYTES = 24  # size of a TF_TString
_TYPE_NUMBERS = {name: number for number, name in protos.TYPES.items()}

_POINTER, _TEXT, _INT, _SIZE = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t


class _Buffer(ctypes.Structure):
    """`TF_Buffer`."""

    _fields_ = [("data", _POINTER), ("length", _SIZE), ("deallocator", _POINTER)]


class _Output(ctypes.Structure):
    """`TF_Output`: one output of an operation."""

    _fields_ = [("operation", _POINTER), ("index", _INT)]


_BUFFER, _OUTPUTS = ctypes.POINTER(_Buffer), ctypes.POINTER(_Output)
_POINTERS = ctypes.POINTER(_POINTER)

# Function: type of its result, types of its arguments.
_FUNCTIONS = {
    "TF_Version": (_TEXT,),
    "TF_NewStatus": (_POINTER,),
    "TF_DeleteStatus": (None, _POINTER),
    "TF_GetCode": (_INT, _POINTER),
    "TF_Message": (_TEXT, _POINTER),
    "TF_NewBuffer": (_BUFFER,),
    "TF_DeleteBuffer": (None, _BUFFER),
    "TF_GetAllOpList": (_BUFFER,),
    "TF_NewGraph": (_POINTER,),
    "TF_DeleteGraph": (None, _POINTER),
    "TF_GraphOperationByName": (_POINTER, _POINTER, _TEXT),
    "TF_NewSessionOptions": (_POINTER,),
    "TF_DeleteSessionOptions": (None, _POINTER),
    "TF_LoadSessionFromSavedModel": (
        _POINTER,
        *(_POINTER, _BUFFER, _TEXT, ctypes.POINTER(_TEXT), _INT),
        *(_POINTER, _BUFFER, _POINTER),
    ),
    "TF_CloseSession": (None, _POINTER, _POINTER),
    "TF_DeleteSession": (None, _POINTER, _POINTER),
    "TF_SessionRun": (
        *(None, _POINTER, _BUFFER, _OUTPUTS, _POINTERS, _INT, _OUTPUTS, _POINTERS, _INT),
        *(_POINTERS, _INT, _BUFFER, _POINTER),
    ),
    "TF_AllocateTensor": (_POINTER, _INT, ctypes.POINTER(ctypes.c_int64), _INT, _SIZE),
    "TF_DeleteTensor": (None, _POINTER),
    "TF_TensorType": (_INT, _POINTER),
    "TF_NumDims": (_INT, _POINTER),
    "TF_Dim": (ctypes.c_int64, _POINTER, _INT),
    "TF_TensorByteSize": (_SIZE, _POINTER),
    "TF_TensorData": (_POINTER, _POINTER),
    "TF_StringInit": (None, _POINTER),
    "TF_StringCopy": (None, _POINTER, _TEXT, _SIZE),
    "TF_StringGetDataPointer": (_POINTER, _POINTER),
    "TF_StringGetSize": (_SIZE, _POINTER),
    "TF_StringDealloc": (None, _POINTER),
}


class StatusError(Exception):
    """A function of the library failed.

    Attributes:
        code: Number of the status, the same in TensorFlow and gRPC.
        name: Its name, e.g. "INVALID_ARGUMENT".
        message: The library's message.
    """

    NAMES = (
        *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
        *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
        *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
        "UNAUTHENTICATED",
    )

    def __init__(self, code: int, message: str):
        self.code = code
        self.name = self.NAMES[code]
        self.message = message
        super().__init__(f"{self.name}: {one_line(message)}")


@functools.cache
def library() -> ctypes.CDLL:
    """Loads the library and declares its functions.

    Raises:
        InputError: TensorFlow is not installed, or its C library is not among its files.
    """
    package = importlib.util.find_spec("tensorflow")
    if package is None:
        raise InputError("TensorFlow is not installed; run `make setup`")
    folder = os.path.dirname(package.origin)
    try:
        found = [ctypes.CDLL(os.path.join(folder, name)) for name in _LIBRARIES][-1]
    except OSError as error:
        raise InputError(f"TensorFlow's C library cannot be loaded ({error})") from None
    for name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def version() -> str:
    """Version of the library, e.g. "2.21.0"."""
    return library().TF_Version().decode()


def stateful_operations() -> set[str]:
    """Names of the operations that TensorFlow registers as stateful."""
    buffer = library().TF_GetAllOpList()
    try:
        registered = protos.OpList.FromString(_content(buffer))
    finally:
        library().TF_DeleteBuffer(buffer)
    return {definition.name for definition in registered.op if definition.is_stateful}


class Session:
    """A SavedModel in memory.

    Args:
        path: The SavedModel's own folder.

    Attributes:
        signatures: Name -> `Signature` as the graph declares it.

    Raises:
        StatusError: The SavedModel cannot be loaded.
    """

    def __init__(self, path: str):
        c = library()
        self._graph = c.TF_NewGraph()
        options, buffer = c.TF_NewSessionOptions(), c.TF_NewBuffer()
        tags = (ctypes.c_char_p * 1)(_TAG)
        arguments = (options, None, os.fsencode(path), tags, 1, self._graph, buffer)
        try:
            self._session = _call("TF_LoadSessionFromSavedModel", *arguments)
            meta_graph = protos.MetaGraphDef.FromString(_content(buffer))
        finally:
            c.TF_DeleteSessionOptions(options)
            c.TF_DeleteBuffer(buffer)
        self.signatures = protos.read_signatures(meta_graph)
        self._tensor_names = protos.read_tensor_names(meta_graph)

    def run(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers a request.

        Args:
            name: Name of the signature.
            inputs: Input name -> array of the signature's type; strings are arrays of objects.
                Inputs that have a default may be left out.

        Returns:
            Output name -> array.

        Raises:
            StatusError: There is no such signature, an input is missing, unknown or of another
                type, or the graph refuses a value or fails.
        """
        self._check_inputs(name, inputs)
        names, outputs = self._tensor_names[name], list(self.signatures[name].outputs)
        given = {names.inputs[key]: array for key, array in inputs.items()}
        arrays = self._run(given, [names.outputs[key] for key in outputs])
        return dict(zip(outputs, arrays, strict=True))

    def close(self) -> None:
        """Frees the memory of the library."""
        _call("TF_CloseSession", self._session)
        _call("TF_DeleteSession", self._session)
        library().TF_DeleteGraph(self._graph)

    def _check_inputs(self, name: str, inputs: dict[str, np.ndarray]) -> None:
        """Checks names and types. The graph itself checks shapes."""
        if name not in self.signatures:
            raise StatusError(3, f'Serving signature name: "{name}" not found in signature def')
        specs = self.signatures[name].inputs
        given = {key: _type_name(array) for key, array in inputs.items()}
        expected = {
            key: spec.dtype for key, spec in specs.items() if key in inputs or not spec.optional
        }
        if given != expected:
            raise StatusError(3, f"{name} takes {expected}. Received: {given}")

    def _run(self, given: dict[str, np.ndarray], fetched: list[str]) -> list[np.ndarray]:
        feeds, fetches = self._outputs(given), self._outputs(fetched)
        values = (ctypes.c_void_p * len(given))()
        answers = (ctypes.c_void_p * len(fetched))()
        try:
            values[:] = [_create_tensor(array) for array in given.values()]
            _call(
                *("TF_SessionRun", self._session, None, feeds, values, len(given)),
                *(fetches, answers, len(fetched), None, 0, None),
            )
            return [_read_tensor(answer) for answer in answers]
        finally:
            for tensor in filter(None, [*values, *answers]):
                _delete_tensor(tensor)

    def _outputs(self, names):
        """`TF_Output[]` of tensors called "operation:index"."""
        outputs = [self._output(name) for name in names]
        return (_Output * len(outputs))(*outputs)

    def _output(self, tensor: str) -> _Output:
        name, _, index = tensor.rpartition(":")
        operation = library().TF_GraphOperationByName(self._graph, name.encode())
        if not (operation and index.isdecimal()):
            raise StatusError(5, f"a signature names a tensor that does not exist: {tensor}")
        return _Output(operation, int(index))


def _call(name: str, *arguments):
    """Calls a function whose last argument is a status. Raises: StatusError."""
    c = library()
    status = c.TF_NewStatus()
    try:
        result = getattr(c, name)(*arguments, status)
        code = c.TF_GetCode(status)
        if code:
            raise StatusError(code, c.TF_Message(status).decode(errors="replace"))
        return result
    finally:
        c.TF_DeleteStatus(status)


def _content(buffer) -> bytes:
    return ctypes.string_at(buffer.contents.data, buffer.contents.length)


def _type_name(array: np.ndarray) -> str:
    return "string" if array.dtype == object else array.dtype.name


def _create_tensor(array: np.ndarray) -> int:
    """Copies an array into a new tensor, which `_delete_tensor` frees."""
    c = library()
    name = _type_name(array)
    num_bytes = array.size * _STRING_BYTES if name == "string" else array.nbytes
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    tensor = c.TF_AllocateTensor(_TYPE_NUMBERS[name], shape, array.ndim, num_bytes)
    if name == "string":
        for address, content in zip(_string_addresses(tensor), array.flat, strict=True):
            c.TF_StringInit(address)
            c.TF_StringCopy(address, content, len(content))
    else:
        ctypes.memmove(c.TF_TensorData(tensor), np.ascontiguousarray(array).ctypes.data, num_bytes)
    return tensor


def _read_tensor(tensor: int) -> np.ndarray:
    """Copies a tensor into an array; strings become objects."""
    c = library()
    shape = [c.TF_Dim(tensor, axis) for axis in range(c.TF_NumDims(tensor))]
    name = protos.TYPES.get(c.TF_TensorType(tensor))
    if name is None:
        raise StatusError(12, f"a tensor of type {c.TF_TensorType(tensor)}")
    if name != "string":
        content = ctypes.string_at(c.TF_TensorData(tensor), c.TF_TensorByteSize(tensor))
        return np.frombuffer(content, name).reshape(shape)
    strings = [
        ctypes.string_at(c.TF_StringGetDataPointer(address), c.TF_StringGetSize(address))
        for address in _string_addresses(tensor)
    ]
    return np.array(strings, object).reshape(shape)


def _delete_tensor(tensor: int) -> None:
    """Frees a tensor and its strings, which the library leaves to the caller."""
    c = library()
    if protos.TYPES.get(c.TF_TensorType(tensor)) == "string":
        for address in _string_addresses(tensor):
            c.TF_StringDealloc(address)
    c.TF_DeleteTensor(tensor)


def _string_addresses(tensor: int) -> list[int]:
    c = library()
    start, num_bytes = c.TF_TensorData(tensor), c.TF_TensorByteSize(tensor)
    return [start + offset for offset in range(0, num_bytes, _STRING_BYTES)]
