"""TensorFlow Serving's two interfaces, REST and gRPC, as one protocol of arrays.

REST needs the standard library only. gRPC needs tensorflow-serving-api, which imports TensorFlow.
"""

import base64
import contextlib
import dataclasses
import http.client
import json
import math
import re
import socket
import threading
import urllib.parse
from typing import Protocol

import numpy as np

from igpt_tf.errors import InputError, one_line
from igpt_tf.savedmodel.spec import SIGNATURES, Signature, TensorSpec

MAX_ANSWER_BYTES = 2**28
_MAX_METADATA_BYTES = 2**22
_JSON_BYTES_PER_NUMBER = 64  # the server indents its JSON: one number per line


class ServerError(InputError):
    """The server is not reachable, or its answer is not that of a model of igpt_tf."""


class RequestRefused(InputError):
    """The server refuses the values of a request, e.g. a damaged image file."""


@dataclasses.dataclass(frozen=True)
class ServerAddress:
    """A model of a server.

    Attributes:
        server: "HOST:PORT".
        model: Name of the model at the server.
        version: Number of its version; None for the newest.
        timeout: Seconds until an answer must be complete.

    Raises:
        InputError: A value is malformed or out of range.
    """

    server: str
    model: str
    version: int | None = None
    timeout: float = 300.0

    def __post_init__(self):
        found = re.fullmatch(r"(?:\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})", self.server, re.ASCII)
        if not found or not 1 <= int(found[1]) <= 65535:
            raise InputError(
                "the server must be HOST:PORT with a port of 1 to 65535. "
                f"Received: server={self.server}"
            )
        if not (0 < self.timeout <= threading.TIMEOUT_MAX and math.isfinite(self.timeout)):
            raise InputError(f"the timeout must be positive. Received: timeout={self.timeout}")

    def unreachable(self, reason) -> ServerError:
        """Error: no connection, or no complete answer in time."""
        return ServerError(
            f"no answer from the server ({one_line(str(reason))}); is it running there? "
            f"Received: server={self.server}, timeout={self.timeout:g}"
        )

    def unknown_model(self, reason: str) -> ServerError:
        """Error: the server does not serve the model or its version."""
        version = "" if self.version is None else f", version={self.version}"
        return ServerError(
            f"the server has no such model ({one_line(reason)}). "
            f"Received: server={self.server}, model={self.model}{version}"
        )

    def not_tensorflow_serving(self) -> ServerError:
        """Error: another kind of server answers."""
        return ServerError(
            "the server does not answer as TensorFlow Serving does; REST and gRPC have different "
            f"ports. Received: server={self.server}"
        )

    def wrong_answer(self, name: str, problem: str) -> ServerError:
        """Error: an answer differs from the outputs of its signature."""
        return ServerError(
            f"the server's answer is not one of the signature {name} ({problem}). "
            f"Received: server={self.server}, model={self.model}"
        )

    def failure(self, status: str, reason: str) -> ServerError:
        """Error: the server failed to answer a valid request."""
        return ServerError(
            f"the server fails with {status} ({one_line(reason)}). Received: server={self.server}"
        )

    def too_large(self, max_bytes: int) -> ServerError:
        """Error: an answer exceeds its byte limit."""
        return ServerError(
            f"the server's answer has more than {max_bytes} bytes; ask for fewer images at once "
            f"(--batch_size). Received: server={self.server}"
        )


class Transport(Protocol):
    """Sends requests to one model of a server.

    Attributes:
        address: `ServerAddress`.

    Raises (both methods):
        ServerError: No answer, no such model, or an answer that is not the model's.
        RequestRefused: The server refuses the values of the request.
    """

    address: ServerAddress

    def signatures(self) -> dict[str, Signature]:
        """Returns those signatures of the model that igpt_tf knows; unknown sizes are None."""

    def predict(
        self, name: str, inputs: dict[str, np.ndarray], outputs: dict[str, TensorSpec]
    ) -> dict[str, np.ndarray]:
        """Returns the answer of a signature.

        Args:
            name: Name of the signature.
            inputs: Input name -> array; strings are arrays of bytes objects.
            outputs: Output name -> type and shape of the expected array. The caller checks the
                arrays; the transport needs them for decoding and for its byte limit.
        """


class Rest:
    """REST. See `Transport`.

    Args:
        address: The server's REST port and the model.

    Source: tensorflow_serving/g3doc/api_rest.md (the column format, which scalars need).
    """

    def __init__(self, address: ServerAddress):
        self.address = address
        version = "" if address.version is None else f"/versions/{address.version}"
        self._path = f"/v1/models/{urllib.parse.quote(address.model, safe='')}{version}"

    def signatures(self) -> dict[str, Signature]:
        """See `Transport`."""
        answer = self._request("GET", "/metadata", None, _MAX_METADATA_BYTES)
        try:
            found = answer["metadata"]["signature_def"]["signature_def"]
            return {
                name: Signature(
                    name,
                    SIGNATURES[name].description,
                    _specs_from_json(found[name]["inputs"]),
                    _specs_from_json(found[name]["outputs"]),
                )
                for name in sorted(SIGNATURES.keys() & found.keys())
            }
        except (KeyError, TypeError, AttributeError, ValueError):
            raise self.address.not_tensorflow_serving() from None

    def predict(
        self, name: str, inputs: dict[str, np.ndarray], outputs: dict[str, TensorSpec]
    ) -> dict[str, np.ndarray]:
        """See `Transport`."""
        request = {
            "signature_name": name,
            "inputs": {key: _to_json(array) for key, array in inputs.items()},
        }
        num_values = sum(math.prod(spec.axes) for spec in outputs.values())
        max_bytes = min(2**16 + _JSON_BYTES_PER_NUMBER * num_values, MAX_ANSWER_BYTES)
        answer = self._request("POST", ":predict", json.dumps(request).encode(), max_bytes)
        try:
            found = answer["outputs"]
            if len(outputs) == 1:  # the server omits the name of a single output
                found = dict.fromkeys(outputs, found)
            return {key: _from_json(found[key], spec.dtype) for key, spec in outputs.items()}
        except KeyError as error:
            raise self.address.wrong_answer(name, f"it lacks {error}") from None
        except TypeError:
            raise self.address.wrong_answer(name, "it is not an object") from None
        except (ValueError, OverflowError) as error:
            raise self.address.wrong_answer(name, str(error)) from None

    def _request(self, method: str, action: str, body: bytes | None, max_bytes: int):
        """Returns the decoded JSON of an answer with status 200."""
        status, content = self._exchange(method, self._path + action, body, max_bytes)
        try:
            answer = json.loads(content)
            if status == 200:
                return answer
            reason = str(answer["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self.address.not_tensorflow_serving() from None
        if status == 404:
            raise self.address.unknown_model(reason)
        if status == 400:
            raise RequestRefused(f"the server refuses the request: {one_line(reason)}")
        raise self.address.failure(f"status {status}", reason)

    def _exchange(self, method: str, path: str, body: bytes | None, max_bytes: int):
        """Returns (status, content) of an answer.

        The socket's own timeout restarts with every byte received, so a timer shuts the connection
        down once the whole answer is due.
        """
        timeout = self.address.timeout
        connection = http.client.HTTPConnection(self.address.server, timeout=timeout)
        expired = threading.Event()
        try:
            connection.connect()
            timer = threading.Timer(timeout, _shut_down, (connection.sock, expired))
            timer.start()
            try:
                headers = {"Content-Type": "application/json", "Connection": "close"}
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                content = response.read(max_bytes + 1)
            finally:
                timer.cancel()
            if len(content) > max_bytes:
                raise self.address.too_large(max_bytes)
            if expired.is_set():
                raise TimeoutError("timed out")
            if response.length:  # bytes that were announced and did not come
                raise http.client.IncompleteRead(content, response.length)
            return response.status, content
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = "timed out" if expired.is_set() else str(error) or type(error).__name__
            raise self.address.unreachable(reason) from None
        finally:
            connection.close()


def _shut_down(sock: socket.socket, expired: threading.Event) -> None:
    expired.set()
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _specs_from_json(tensors: dict) -> dict[str, TensorSpec]:
    return {name: _spec_from_json(tensor) for name, tensor in tensors.items()}


def _spec_from_json(tensor: dict) -> TensorSpec:
    names = {"DT_FLOAT": "float32", "DT_STRING": "string"}  # the others are NumPy's
    dtype = names.get(tensor["dtype"], tensor["dtype"].removeprefix("DT_").lower())
    sizes = [int(dim["size"]) for dim in tensor["tensor_shape"]["dim"]]
    return TensorSpec(dtype, tuple(None if size < 0 else size for size in sizes))


def _to_json(array: np.ndarray):
    if array.dtype == object:
        return [{"b64": base64.b64encode(content).decode()} for content in array]
    return array.tolist()


def _from_json(value, dtype: str) -> np.ndarray:
    """Converts nested lists of numbers without loss.

    Raises:
        ValueError, OverflowError: Not numbers of this type, or lists of unequal length.
    """
    array = np.asarray(value, object)
    types = set(map(type, array.flat))
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        if not types <= {int} or (
            array.size and not limits.min <= array.min() <= array.max() <= limits.max
        ):
            raise ValueError(f"its numbers are not {dtype}")
    elif not types <= {int, float}:
        raise ValueError(f"its numbers are not {dtype}")
    with np.errstate(over="ignore"):
        return array.astype("float64").astype(dtype) if dtype == "float32" else array.astype(dtype)


class Grpc:
    """gRPC. See `Transport`.

    Args:
        address: The server's gRPC port and the model.

    Raises:
        InputError: tensorflow-serving-api is not installed.
    """

    def __init__(self, address: ServerAddress):
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError:
            raise InputError(
                "gRPC needs the package tensorflow-serving-api: "
                "pip install -r requirements-serving.txt, or use REST"
            ) from None
        self.address = address
        options = [("grpc.max_receive_message_length", MAX_ANSWER_BYTES)]  # 4 MiB by default
        channel = grpc.insecure_channel(address.server, options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def signatures(self) -> dict[str, Signature]:
        """See `Transport`."""
        from google.protobuf.message import DecodeError
        from tensorflow_serving.apis import get_model_metadata_pb2 as messages

        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._set_model(request.model_spec)
        answer = self._call(self._stub.GetModelMetadata, request)
        found = messages.SignatureDefMap()
        try:
            found.ParseFromString(answer.metadata["signature_def"].value)
            return {
                name: Signature(
                    name,
                    SIGNATURES[name].description,
                    _specs_from_proto(found.signature_def[name].inputs),
                    _specs_from_proto(found.signature_def[name].outputs),
                )
                for name in sorted(SIGNATURES.keys() & found.signature_def.keys())
            }
        except (DecodeError, TypeError):
            raise self.address.not_tensorflow_serving() from None

    def predict(
        self, name: str, inputs: dict[str, np.ndarray], outputs: dict[str, TensorSpec]
    ) -> dict[str, np.ndarray]:
        """See `Transport`."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        self._set_model(request.model_spec)
        request.model_spec.signature_name = name
        for key, array in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
        answer = self._call(self._stub.Predict, request)
        arrays = {}
        for key, spec in outputs.items():
            try:
                found = _spec_from_proto(answer.outputs[key])
                if not spec.accepts(found.dtype, found.axes):  # make_ndarray allocates any shape
                    raise ValueError(f"{key} is {found}, not {spec}")
                arrays[key] = tf.make_ndarray(answer.outputs[key])
            except (ValueError, TypeError) as error:
                raise self.address.wrong_answer(name, one_line(str(error))) from None
        return arrays

    def _set_model(self, model_spec) -> None:
        model_spec.name = self.address.model
        if self.address.version is not None:
            model_spec.version.value = self.address.version

    def _call(self, method, request):
        import grpc

        try:
            return method(request, timeout=self.address.timeout)
        except grpc.RpcError as error:
            code, reason = error.code().name, error.details() or ""
        if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            raise self.address.unreachable(f"{code}: {reason}")
        if code == "NOT_FOUND":
            raise self.address.unknown_model(reason)
        if code == "UNIMPLEMENTED":
            raise self.address.not_tensorflow_serving()
        if code == "RESOURCE_EXHAUSTED" and "larger than max" in reason:
            raise self.address.too_large(MAX_ANSWER_BYTES)
        if code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE"):
            raise RequestRefused(f"the server refuses the request: {one_line(reason)}")
        raise self.address.failure(code, reason)


def _specs_from_proto(tensors) -> dict[str, TensorSpec]:
    return {name: _spec_from_proto(tensors[name]) for name in sorted(tensors)}


def _spec_from_proto(tensor) -> TensorSpec:
    """From a `TensorInfo` or a `TensorProto`."""
    import tensorflow as tf

    shape = tensor.tensor_shape
    axes = tuple(None if dim.size < 0 else dim.size for dim in shape.dim)
    return TensorSpec(tf.dtypes.as_dtype(tensor.dtype).name, axes)
