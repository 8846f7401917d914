"""Warm-up records: TensorFlow Serving's own classes read them, and the model answers them."""

import contextlib
import os
import struct

import numpy as np
import pytest
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.savedmodel import protos
from igpt_tf.savedmodel.warmup import WARMUP, encode_record, read_warmup

INPUTS = {
    "images": np.arange(24, dtype="uint8").reshape(1, 2, 4, 3),
    "known": np.array([[True, False]]),
    "seed": np.int32(-7),
    "temperature": np.float32(0.5),
    "image_bytes": np.array([b"\x00\xff", b""], object),
}


def _write(folder, content: bytes):
    path = folder / WARMUP
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return str(folder)


def _as_file(record: bytes) -> bytes:
    return struct.pack("<QI", len(record), 0) + record + bytes(4)


def test_a_record_is_read_as_it_was_written(tmp_path):
    folder = _write(tmp_path, 2 * _as_file(encode_record("complete", INPUTS)))
    for name, inputs in read_warmup(folder):
        assert name == "complete" and inputs.keys() == INPUTS.keys()
        for key, array in inputs.items():
            assert array.dtype == INPUTS[key].dtype
            np.testing.assert_array_equal(array, INPUTS[key])
    assert len(list(read_warmup(folder))) == 2


@pytest.mark.parametrize(
    "array", [np.zeros((2, 3), "float32"), np.full((2, 3), 7, "int32"), np.full(3, True)]
)
def test_tensors_as_tensorflow_encodes_them_are_read(array):
    proto = protos.PredictionLog().predict_log.request.inputs.add().value
    proto.ParseFromString(tf.make_tensor_proto(array).SerializeToString())
    np.testing.assert_array_equal(protos.read_tensor(proto), array)


def test_a_folder_without_the_file_has_no_records(tmp_path):
    assert not list(read_warmup(str(tmp_path)))


def _tensor(**fields) -> bytes:
    log = protos.PredictionLog()
    tensor = log.predict_log.request.inputs.add(key="images").value
    for size in fields.pop("shape", ()):
        tensor.tensor_shape.dim.add(size=size)
    for name, value in fields.items():
        setattr(tensor, name, value)
    return _as_file(log.SerializeToString())


@pytest.mark.parametrize(
    "content",
    [
        b"1",
        b"\xff" * 40,
        b"\x02" + bytes(11) + b"\x32\x7f" + bytes(4),
        struct.pack("<QI", 2**60, 0) + b"short",
        _as_file(b"\xff\xff\xff"),
        _as_file(encode_record("encode", INPUTS))[:-10],
        _tensor(dtype=99),
        _tensor(dtype=1, shape=(2**62,)),
        _tensor(dtype=1, shape=(-3,)),
        _tensor(dtype=1, shape=(2**31, 2**31)),
        _tensor(dtype=4, shape=(5,), tensor_content=b"1"),
        _tensor(dtype=7, shape=(1,), tensor_content=b"12345678"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(InputError, match="warm-up file is damaged") as caught:
        list(read_warmup(_write(tmp_path, content)))
    assert "\n" not in str(caught.value)


def test_mutated_files_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    content = np.frombuffer(_as_file(encode_record("complete", INPUTS)), "uint8")
    for _ in range(300):
        mutated = content[: rng.integers(1, len(content) + 1)].copy()
        mutated[rng.integers(0, len(mutated), 3)] = rng.integers(0, 256, 3)
        with contextlib.suppress(InputError):
            list(read_warmup(_write(tmp_path, mutated.tobytes())))


def test_each_signature_has_one_small_record_that_the_model_answers(pretrained, tmp_path):
    logs = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2",
        reason="tensorflow-serving-api is not installed",
    )
    path = os.path.join(pretrained.path, WARMUP)
    assert os.path.getsize(path) < 4096
    with open(path, "rb") as file:  # TensorFlow takes the path for a pattern
        (tmp_path / "records").write_bytes(file.read())
    names = []
    for record in tf.data.TFRecordDataset(str(tmp_path / "records")):  # compares checksums
        request = logs.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {key: tf.make_ndarray(proto) for key, proto in request.inputs.items()}
        name = request.model_spec.signature_name
        assert all(len(answer) == 1 for answer in pretrained.call(name, **inputs).values())
        names.append(name)
    assert names == pretrained.saved.signature_names
