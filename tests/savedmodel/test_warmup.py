"""Claims about the warm-up records: TensorFlow Serving's own classes read them, and they run."""

import os

import pytest
import tensorflow as tf

from igpt_tf.savedmodel.load import SavedModel
from tests.serving.exported import write

logs = pytest.importorskip(
    "tensorflow_serving.apis.prediction_log_pb2", reason="tensorflow-serving-api is not installed"
)


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "masked"])
def path(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("export") / "5", causal=request.param)


def _records(path):
    file = os.path.join(path, "assets.extra", "tf_serving_warmup_requests")
    return [logs.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(file)]


def test_each_signature_has_one_record_that_the_model_answers(path):
    saved = SavedModel(path)
    requests = [record.predict_log.request for record in _records(path)]
    assert [r.model_spec.signature_name for r in requests] == saved.signature_names
    for request in requests:
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        for answer in saved.signature(request.model_spec.signature_name)(**inputs).values():
            assert len(answer) == 1


def test_records_hold_nothing_but_a_signature_and_its_inputs(path):
    for record in _records(path):
        request = record.predict_log.request
        again = logs.PredictionLog()
        again.predict_log.request.model_spec.signature_name = request.model_spec.signature_name
        for name, proto in request.inputs.items():
            again.predict_log.request.inputs[name].CopyFrom(proto)
        assert again == record


def test_records_are_small(path):
    size = os.path.getsize(os.path.join(path, "assets.extra", "tf_serving_warmup_requests"))
    assert size < 4096
