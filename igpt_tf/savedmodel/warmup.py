"""Warm-up records: one request per signature, which TensorFlow Serving runs when it loads a model.

The first request of a signature takes up to a thousand times as long as the next ones. With these
records the server pays that before it reports the model as available. Each request is the small
example of `spec.example_request`.

The file is a TFRecord of `tensorflow.serving.PredictionLog` messages.
Source: tensorflow_serving/g3doc/saved_model_warmup.md, apis/prediction_log.proto.
"""

import os
import struct
from collections.abc import Iterator

import numpy as np
from google.protobuf.message import DecodeError

from igpt_tf.errors import InputError
from igpt_tf.savedmodel import protos
from igpt_tf.savedmodel.spec import available_signatures, example_request, sizes_of

WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")
_HEADER, _FOOTER = struct.Struct("<QI"), 4  # length and its checksum; checksum of the content
_MAX_BYTES = 2**30


def write_warmup(folder: str, metadata: dict) -> None:
    """Writes a record for each signature of the model with this metadata.

    Args:
        folder: The SavedModel's folder.
        metadata: Content of its metadata.json.
    """
    import tensorflow as tf

    path = os.path.join(folder, WARMUP)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    sizes = sizes_of(metadata)
    with tf.io.TFRecordWriter(path) as file:
        for name, signature in sorted(available_signatures(metadata).items()):
            file.write(encode_record(name, example_request(signature, sizes)))


def encode_record(signature: str, inputs: dict[str, np.ndarray]) -> bytes:
    """A `PredictionLog` with one request.

    Args:
        signature: Name of the signature.
        inputs: Input name -> array; strings are arrays of objects.
    """
    log = protos.PredictionLog()
    request = log.predict_log.request
    request.model_spec.signature_name = signature
    for name, array in inputs.items():
        protos.set_tensor(request.inputs.add(key=name).value, array)
    return log.SerializeToString()


def read_warmup(folder: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Reads (signature, inputs) of each record, nothing if there is no file.

    Args:
        folder: The SavedModel's folder.

    Raises:
        InputError: The file is not a TFRecord of `PredictionLog` messages.
    """
    path = os.path.join(folder, WARMUP)
    if not os.path.exists(path):
        return
    try:
        for record in _records(path):
            request = protos.PredictionLog.FromString(record).predict_log.request
            inputs = {entry.key: protos.read_tensor(entry.value) for entry in request.inputs}
            yield request.model_spec.signature_name, inputs
    except (DecodeError, struct.error, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the warm-up file is damaged ({reason}); export the SavedModel again. "
            f"Received: path={path}"
        ) from None


def _records(path: str) -> Iterator[bytes]:
    """Contents of a TFRecord file, without TensorFlow. Checksums are not compared."""
    if os.path.getsize(path) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes")
    with open(path, "rb") as file:
        content = file.read()
    start = 0
    while start < len(content):
        length, _ = _HEADER.unpack_from(content, start)
        start += _HEADER.size
        if start + length + _FOOTER > len(content):
            raise ValueError("it is cut short")
        yield content[start : start + length]
        start += length + _FOOTER
