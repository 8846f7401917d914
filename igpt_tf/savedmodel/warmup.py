"""Warm-up records: a request for each signature, which TensorFlow Serving runs on loading.

A signature's first answer takes hundreds of times as long as the next ones; with these records the
server pays before it reports the model available. Every request is small: one image, and of a
completion one pixel.

The file is a TFRecord of `tensorflow.serving.PredictionLog`. Its classes are in the package
tensorflow-serving-api, which everybody who trains would have to install for them. Only four
messages around a `TensorProto` are needed, all of their fields strings and messages, and those
have one wire format: so they are written here, and the tests read them with the package.

Source: tensorflow_serving/apis/{prediction_log,predict,model}.proto.
"""

import os

import numpy as np
import tensorflow as tf

WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")
_ONES = {"temperature", "top_p", "num_images", "num_rounds"}


def write(folder: str, signatures: dict) -> None:
    """Writes the records of `signatures`, name -> tf.function, into a SavedModel's folder."""
    path = os.path.join(folder, WARMUP)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(path) as file:
        for name, function in sorted(signatures.items()):
            file.write(record(name, _inputs(function.input_signature)))


def record(signature: str, inputs: dict) -> bytes:
    """A `PredictionLog`.

    Args:
        signature: Name of the signature.
        inputs: Input name -> `TensorProto`.
    """
    model_spec = _field(3, signature.encode())  # ModelSpec.signature_name
    entries = b"".join(
        _field(2, _field(1, name.encode()) + _field(2, tensor.SerializeToString()))
        for name, tensor in inputs.items()
    )
    request = _field(1, model_spec) + entries  # PredictRequest.model_spec, .inputs
    return _field(6, _field(1, request))  # PredictionLog.predict_log, PredictLog.request


def _field(number: int, content: bytes) -> bytes:
    """A string or a message inside a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _inputs(specs) -> dict:
    """The smallest thing to ask for, name -> `TensorProto`."""
    inputs = {spec.name: _value(spec) for spec in specs}
    if "num_given" in inputs:
        _, height, width, _ = next(spec.shape for spec in specs if spec.name == "images")
        inputs["num_given"] = tf.make_tensor_proto(height * width - 1, tf.int32)
    return inputs


def _value(spec: tf.TensorSpec):
    if spec.dtype == tf.string:
        png = tf.io.encode_png(np.zeros((8, 8, 3), "uint8")).numpy()
        return tf.make_tensor_proto([png], spec.dtype)
    shape = [1 if size is None else size for size in spec.shape]
    value = 1 if spec.name in _ONES else 0
    return tf.make_tensor_proto(np.full(shape, value, spec.dtype.as_numpy_dtype))
