"""The warm-up requests inside a SavedModel, read as TensorFlow Serving reads them."""

import os
import struct
from collections.abc import Iterator

import numpy as np
from google.protobuf.message import DecodeError

from igpt_tf.errors import InputError
from igpt_tf.savedmodel import tensors
from igpt_tf.savedmodel.protos import PredictionLog

_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
_HEADER, _FOOTER = struct.Struct("<QI"), 4  # length, its checksum; checksum of the record
_VALUES = ("float_val", "int_val", "string_val", "int64_val", "bool_val")


def read(path: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(signature, inputs) of each record, nothing if there is no file.

    Args:
        path: The SavedModel's own folder.

    Raises:
        InputError: The file is not a TFRecord of `PredictionLog`.
    """
    file_path = os.path.join(path, _FILE)
    if not os.path.exists(file_path):
        return
    with open(file_path, "rb") as file:
        content = file.read()
    try:
        for record in _records(content):
            request = PredictionLog.FromString(record).predict_log.request
            inputs = {entry.key: _array(entry.value) for entry in request.inputs}
            yield request.model_spec.signature_name, inputs
    except (DecodeError, struct.error, ValueError, KeyError) as error:
        raise InputError(f"the warm-up file is damaged ({error}). Received: path={path}") from None


def _records(content: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        length, _ = _HEADER.unpack_from(content, start)
        start += _HEADER.size
        yield content[start : start + length]
        start += length + _FOOTER


def _array(proto) -> np.ndarray:
    """Of a `TensorProto`, whose last value stands for all that are left out."""
    name = tensors.NAMES[proto.dtype]
    dtype = object if name == "string" else name
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values = next((list(v) for v in (getattr(proto, f) for f in _VALUES) if v), [0])
    count = int(np.prod(shape))
    array = np.empty(count, dtype)
    array[:] = values[:count] + values[-1:] * (count - len(values))
    return array.reshape(shape)
