"""TensorFlow's C library, the one TensorFlow Serving is built on, through ctypes.

TensorFlow's Python is not imported; only the files of its installation are used.
"""

import ctypes
import functools
import importlib.util
import os

from igpt_tf.errors import InputError, one_line

_FILES = ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")
_POINTER, _TEXT, _INT, _SIZE = (
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_size_t,
)


class Buffer(ctypes.Structure):
    """`TF_Buffer`."""

    _fields_ = [("data", _POINTER), ("length", _SIZE), ("deallocator", _POINTER)]


class Output(ctypes.Structure):
    """`TF_Output`: one output of an operation."""

    _fields_ = [("operation", _POINTER), ("index", _INT)]


_BUFFER, _OUTPUTS = ctypes.POINTER(Buffer), ctypes.POINTER(Output)
_POINTERS = ctypes.POINTER(_POINTER)

# Function: what it returns, then what it takes (tensorflow/c/c_api.h, tf_tensor.h, tf_tstring.h).
_FUNCTIONS = {
    "TF_Version": (_TEXT,),
    "TF_NewStatus": (_POINTER,),
    "TF_DeleteStatus": (None, _POINTER),
    "TF_GetCode": (_INT, _POINTER),
    "TF_Message": (_TEXT, _POINTER),
    "TF_NewBuffer": (_BUFFER,),
    "TF_DeleteBuffer": (None, _BUFFER),
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
        code: int, of TensorFlow, of gRPC and of absl alike.
        name: str, e.g. "INVALID_ARGUMENT".
        message: str, as the library gives it.
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
def load() -> ctypes.CDLL:
    """The library with its functions declared.

    Raises:
        InputError: TensorFlow is not installed, or its C library is not among its files.
    """
    spec = importlib.util.find_spec("tensorflow")
    if spec is None:
        raise InputError("TensorFlow is not installed; run `make setup`")
    folder = os.path.dirname(spec.origin)
    try:
        library = [ctypes.CDLL(os.path.join(folder, name)) for name in _FILES][-1]
    except OSError as error:
        raise InputError(f"TensorFlow's C library cannot be loaded ({error})") from None
    for name, (returned, *taken) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returned, taken
    return library


def call(name: str, *arguments):
    """Calls a function whose last argument is a status. Raises: StatusError."""
    library = load()
    status = library.TF_NewStatus()
    try:
        returned = getattr(library, name)(*arguments, status)
        code = library.TF_GetCode(status)
        if code:
            raise StatusError(code, library.TF_Message(status).decode(errors="replace"))
        return returned
    finally:
        library.TF_DeleteStatus(status)


def version() -> str:
    """The library's, e.g. "2.21.0"."""
    return load().TF_Version().decode()
