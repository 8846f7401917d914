"""TensorFlow Serving's gRPC interface, with the classes of tensorflow-serving-api."""

import numpy as np

from igpt_tf.errors import InputError, one_line
from igpt_tf.savedmodel.protos import SignatureDefMap, read_signatures
from igpt_tf.savedmodel.spec import Signature
from igpt_tf.serving.addresses import Address

_UNLIMITED = -1  # gRPC's own limit of an answer is 4 MiB: three hundred surprise maps


class Grpc:
    """A `Transport`. Raises: InputError if tensorflow-serving-api is not installed.

    Args:
        address: Of the server's gRPC port and the model.
    """

    def __init__(self, address: Address):
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError:
            raise InputError(
                "gRPC needs the package tensorflow-serving-api: "
                "pip install -r requirements-serving.txt, or use REST"
            ) from None
        options = [("grpc.max_receive_message_length", _UNLIMITED)]
        self._address, self._error = address, grpc.RpcError
        channel = grpc.insecure_channel(address.server, options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def signatures(self) -> dict[str, Signature]:
        """See `Transport`."""
        from tensorflow_serving.apis import get_model_metadata_pb2 as messages

        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._name(request.model_spec)
        answer = self._send(self._stub.GetModelMetadata, request)
        return read_signatures(SignatureDefMap.FromString(answer.metadata["signature_def"].value))

    def predict(self, name: str, signature: Signature, inputs: dict) -> dict[str, np.ndarray]:
        """See `Transport`."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        self._name(request.model_spec)
        request.model_spec.signature_name = name
        for key, array in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
        answer = self._send(self._stub.Predict, request)
        return {key: tf.make_ndarray(answer.outputs[key]) for key in signature.outputs}

    def _name(self, model_spec) -> None:
        model_spec.name = self._address.model
        if self._address.version is not None:
            model_spec.version.value = self._address.version

    def _send(self, call, request):
        try:
            return call(request, timeout=self._address.timeout)
        except self._error as error:
            raise self._refusal(error.code().name, error.details() or "") from None

    def _refusal(self, code: str, said: str) -> InputError:
        if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            return self._address.unreachable(f"{code}: {said}")
        if code == "NOT_FOUND":
            return self._address.unknown(said)
        if code == "UNIMPLEMENTED":
            return self._address.foreign()
        return InputError(f"the server refuses the request: {one_line(said)}")
