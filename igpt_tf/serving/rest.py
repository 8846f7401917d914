"""TensorFlow Serving's REST interface.

Source: tensorflow_serving/g3doc/api_rest.md (the column format, which scalars need).
"""

import base64
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request

import numpy as np

from igpt_tf.errors import InputError, one_line
from igpt_tf.savedmodel.spec import Signature, TensorSpec
from igpt_tf.serving.addresses import Address

# TensorFlow's names of types that are not NumPy's with DT_ in front.
_NAMES = {"DT_FLOAT": "float32", "DT_STRING": "string"}


class Rest:
    """A `Transport`.

    Args:
        address: Of the server's REST port and the model.
    """

    def __init__(self, address: Address):
        self._address = address
        version = f"/versions/{address.version}" if address.version is not None else ""
        name = urllib.parse.quote(address.model, safe="")
        self._url = f"http://{address.server}/v1/models/{name}{version}"

    def signatures(self) -> dict[str, Signature]:
        """See `Transport`."""
        answer = self._send("/metadata")
        try:
            found = answer["metadata"]["signature_def"]["signature_def"]
            return {
                name: Signature(
                    name, "", _infos(found[name]["inputs"]), _infos(found[name]["outputs"])
                )
                for name in sorted(found)
                if not name.startswith("__")
            }
        except (KeyError, TypeError, AttributeError):
            raise self._address.foreign() from None

    def predict(self, name: str, signature: Signature, inputs: dict) -> dict[str, np.ndarray]:
        """See `Transport`."""
        values = {key: _value(array) for key, array in inputs.items()}
        answer = self._send(":predict", {"signature_name": name, "inputs": values})
        try:
            outputs = answer["outputs"]
            if len(signature.outputs) == 1:  # the server then leaves out its name
                outputs = {next(iter(signature.outputs)): outputs}
            infos = signature.outputs
            return {key: np.asarray(outputs[key], infos[key].dtype) for key in infos}
        except (KeyError, TypeError, ValueError):
            raise self._address.foreign() from None

    def _send(self, path: str, content: dict | None = None) -> dict:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._url + path, body)
        try:
            with urllib.request.urlopen(request, timeout=self._address.timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._address.unreachable(getattr(error, "reason", error)) from None
        except ValueError:
            raise self._address.foreign() from None

    def _refusal(self, error: urllib.error.HTTPError) -> InputError:
        try:
            said = json.load(error)["error"]
        except (ValueError, KeyError, TypeError, OSError):
            return self._address.foreign()
        if error.code == 404:
            return self._address.unknown(said)
        return InputError(f"the server refuses the request: {one_line(said)}")


def _value(array: np.ndarray):
    """As JSON: nested lists, numbers, bytes in base64."""
    if array.dtype == object:
        return [{"b64": base64.b64encode(content).decode()} for content in array]
    return array.tolist()


def _infos(found: dict) -> dict[str, TensorSpec]:
    return {name: _info(found[name]) for name in sorted(found)}


def _info(found: dict) -> TensorSpec:
    sizes = (int(dim["size"]) for dim in found["tensor_shape"]["dim"])
    shape = tuple(None if size < 0 else size for size in sizes)
    dtype = _NAMES.get(found["dtype"], found["dtype"].removeprefix("DT_").lower())
    return TensorSpec(dtype, shape)
