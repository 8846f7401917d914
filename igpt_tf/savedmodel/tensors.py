"""Between NumPy's arrays and the C library's tensors."""

import ctypes

import numpy as np

from igpt_tf.savedmodel import c_library as library

# TensorFlow's numbers of types (tensorflow/core/framework/types.proto).
NAMES = {1: "float32", 3: "int32", 4: "uint8", 7: "string", 9: "int64", 10: "bool"}
_NUMBERS = {name: number for number, name in NAMES.items()}
_STRING_BYTES = 24  # of one TF_TString


def name_of(array: np.ndarray) -> str:
    """Of its type, as in `NAMES`."""
    return "string" if array.dtype == object else array.dtype.name


def create(array: np.ndarray) -> int:
    """A new tensor, to be handed to `delete`. Bytes are held by arrays of objects."""
    c = library.load()
    number = _NUMBERS[name_of(array)]
    num_bytes = array.size * _STRING_BYTES if array.dtype == object else array.nbytes
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    tensor = c.TF_AllocateTensor(number, shape, array.ndim, num_bytes)
    if array.dtype == object:
        for place, content in zip(_places(c, tensor, array.size), array.flat, strict=True):
            c.TF_StringInit(place)
            c.TF_StringCopy(place, content, len(content))
    else:
        ctypes.memmove(c.TF_TensorData(tensor), np.ascontiguousarray(array).ctypes.data, num_bytes)
    return tensor


def read(tensor: int) -> np.ndarray:
    """A copy of a tensor's content; strings as objects."""
    c = library.load()
    shape = [c.TF_Dim(tensor, axis) for axis in range(c.TF_NumDims(tensor))]
    name = NAMES[c.TF_TensorType(tensor)]
    if name == "string":
        return np.array(_strings(c, tensor, int(np.prod(shape))), object).reshape(shape)
    content = ctypes.string_at(c.TF_TensorData(tensor), c.TF_TensorByteSize(tensor))
    return np.frombuffer(content, name).reshape(shape)


def delete(tensor: int) -> None:
    """Frees a tensor, and the strings in it, which the library leaves to their owner."""
    c = library.load()
    if NAMES[c.TF_TensorType(tensor)] == "string":
        for place in _places(c, tensor, c.TF_TensorByteSize(tensor) // _STRING_BYTES):
            c.TF_StringDealloc(place)
    c.TF_DeleteTensor(tensor)


def _strings(c, tensor: int, count: int) -> list[bytes]:
    return [
        ctypes.string_at(c.TF_StringGetDataPointer(place), c.TF_StringGetSize(place))
        for place in _places(c, tensor, count)
    ]


def _places(c, tensor: int, count: int) -> list[int]:
    """Addresses of a string tensor's elements."""
    start = c.TF_TensorData(tensor)
    return [start + index * _STRING_BYTES for index in range(count)]
