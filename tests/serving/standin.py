"""A small stand-in for TensorFlow Serving's server: the paths, messages and refusals of its
interfaces over a SavedModel in the C library. It batches nothing and keeps one version.

Source: tensorflow_serving/g3doc/api_rest.md, model_servers/http_server.cc (codes of status),
util/json_tensor.cc (JSON), apis/prediction_service.proto.
"""

import base64
import contextlib
import http.server
import json
import re
import threading
from concurrent import futures

import numpy as np

from igpt_tf.savedmodel.c_api import Session, StatusError

MODEL, VERSION = "igpt", 5
_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata|:predict|)$")
_HTTP = {3: 400, 5: 404, 9: 400, 12: 501}
_TYPES = {
    "bool": "DT_BOOL",
    "float32": "DT_FLOAT",
    "string": "DT_STRING",
    "int32": "DT_INT32",
    "uint8": "DT_UINT8",
}


class Served:
    """A loaded model.

    Attributes:
        requests: (signature, shapes of the inputs) of the requests that it has answered.
        tamper: None, or a function that changes the arrays of an answer before it is sent, or for
            REST returns the bytes to send instead.
    """

    def __init__(self, path: str):
        self.session, self.requests, self.tamper = Session(path), [], None

    def predict(self, model: str, version: int | None, name: str, inputs: dict) -> dict:
        self.find(model, version)
        self.requests.append((name, {key: array.shape for key, array in inputs.items()}))
        return self.session.run(name, inputs)

    def find(self, model: str, version: int | None) -> None:
        if model != MODEL or version not in (None, VERSION):
            wanted = f"Specific({model}, {version})" if version else f"Latest({model})"
            raise StatusError(5, f"Servable not found for request: {wanted}")


def _tensor(value, dtype: str) -> np.ndarray:
    if dtype != "string":
        return np.asarray(value, dtype)
    array = np.empty(len(value), object)
    array[:] = [base64.b64decode(item["b64"], validate=True) for item in value]
    return array


def _info(info) -> dict:
    dims = [{"size": str(-1 if size is None else size), "name": ""} for size in info.axes]
    shape = {"dim": dims, "unknown_rank": False}
    return {"dtype": _TYPES.get(info.dtype), "tensor_shape": shape, "name": ""}


def _infos(signature) -> dict:
    return {
        "inputs": {key: _info(info) for key, info in signature.inputs.items()},
        "outputs": {key: _info(info) for key, info in signature.outputs.items()},
        "method_name": "tensorflow/serving/predict",
    }


class _Handler(http.server.BaseHTTPRequestHandler):
    served: Served

    def do_GET(self):
        self._answer(None)

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body):
        try:
            code, content = 200, self._content(body)
        except StatusError as error:
            code, content = _HTTP.get(error.code, 500), {"error": error.message}
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.wfile.write(body)

    def _content(self, body) -> dict:
        found = _PATH.match(self.path)
        if not found or (body is None) == (found[3] == ":predict"):
            raise StatusError(3, f"Malformed request: {self.command} {self.path}")
        model, version = found[1], int(found[2]) if found[2] else None
        self.served.find(model, version)
        if body is not None:
            return self._predict(model, version, json.loads(body))
        signatures = self.served.session.signatures
        known = {name: _infos(signature) for name, signature in signatures.items()}
        spec = {"name": model, "signature_name": "", "version": str(VERSION)}
        return {"model_spec": spec, "metadata": {"signature_def": {"signature_def": known}}}

    def _predict(self, model, version, request) -> dict:
        name = request.get("signature_name", "serving_default")
        infos = self.served.session.signatures[name].inputs
        inputs = {key: _tensor(value, infos[key].dtype) for key, value in request["inputs"].items()}
        answer = self.served.predict(model, version, name, inputs)
        if self.served.tamper:
            answer = self.served.tamper(answer)
            if isinstance(answer, bytes):
                return answer
        outputs = {key: array.tolist() for key, array in answer.items()}
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}

    def log_message(self, *_):
        """Keeps the tests' output clean."""


@contextlib.contextmanager
def rest(served: Served):
    """Serves REST on 127.0.0.1; the address "HOST:PORT"."""
    handler = type("Handler", (_Handler,), {"served": served})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def grpc(served: Served):
    """Serves gRPC on 127.0.0.1, if tensorflow-serving-api is installed; the address."""
    import grpc as package
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    server = package.server(futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_service(served), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _service(served: Served):
    import grpc as package
    import tensorflow as tf
    from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2
    from tensorflow_serving.apis import prediction_service_pb2_grpc as service

    codes = {code.value[0]: code for code in package.StatusCode}

    def guarded(answer):
        def method(self, request, context):
            spec = request.model_spec
            version = spec.version.value if spec.HasField("version") else None
            try:
                served.find(spec.name, version)
                return answer(spec, version, request)
            except StatusError as error:
                context.abort(codes[error.code], error.message)

        return method

    def predict(spec, version, request):
        inputs = {key: tf.make_ndarray(proto) for key, proto in request.inputs.items()}
        name = spec.signature_name or "serving_default"
        answer = predict_pb2.PredictResponse()
        found = served.predict(spec.name, version, name, inputs)
        for key, array in (served.tamper(found) if served.tamper else found).items():
            answer.outputs[key].CopyFrom(tf.make_tensor_proto(array))
        return answer

    def metadata(spec, version, request):
        known = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in served.session.signatures.items():
            for kind in ("inputs", "outputs"):
                for key, info in getattr(signature, kind).items():
                    found = getattr(known.signature_def[name], kind)[key]
                    found.dtype = tf.as_dtype(info.dtype).as_datatype_enum
                    for size in info.axes:
                        found.tensor_shape.dim.add(size=-1 if size is None else size)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.metadata["signature_def"].Pack(known)
        return answer

    methods = {"Predict": guarded(predict), "GetModelMetadata": guarded(metadata)}
    return type("Service", (service.PredictionServiceServicer,), methods)()
