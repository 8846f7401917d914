"""A model behind TensorFlow Serving, asked in arrays."""

import functools
from typing import Protocol

import numpy as np

from igpt_tf.errors import InputError
from igpt_tf.sampling.params import SamplingParams, check_limits, check_num_given
from igpt_tf.savedmodel.spec import Signature


class Transport(Protocol):
    """How requests reach the server: `rest.Rest` or `over_grpc.Grpc`.

    Both raise InputError if no server answers, it lacks the model, or refuses the request.
    """

    def signatures(self) -> dict[str, Signature]:
        """What the model says of itself."""

    def predict(self, name: str, signature: Signature, inputs: dict) -> dict[str, np.ndarray]:
        """The answer of the signature of that name."""


def named(signatures: dict[str, Signature], name: str) -> Signature:
    """The served model's signature of that name. Raises: InputError: There is none."""
    if name not in signatures:
        raise InputError(
            f"the served model has no signature {name}, only {', '.join(signatures)}. "
            f"Received: signature={name}"
        )
    return signatures[name]


class Client:
    """Asks a served model, in batches.

    Image i of a call is painted with seed + i, whatever the batch size.

    Args:
        transport: To the server.
        batch_size: Images of one request.

    Raises:
        InputError: From every method: an argument is out of range, the model has no such
            signature, or what the transport raises.
    """

    def __init__(self, transport: Transport, batch_size: int = 16):
        check_limits(num_images=batch_size)
        self._transport, self._batch_size = transport, batch_size

    @functools.cached_property
    def _signatures(self) -> dict[str, Signature]:
        return self._transport.signatures()

    @functools.cached_property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the model."""
        _, height, width, _ = self._signature("encode").inputs["images"].axes
        return height, width

    def features(self, files: list[bytes]) -> dict[str, np.ndarray]:
        """`features` float32[N,L+1,D] of image files."""
        return self._in_batches("features_bytes", image_bytes=_objects(files))

    def classify(self, files: list[bytes]) -> dict[str, np.ndarray]:
        """`probabilities` float32[N,C] and `labels` int32[N] of image files."""
        return self._in_batches("classify_bytes", image_bytes=_objects(files))

    def score(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """`nats_per_token` float32[N], `surprise` float32[N,H,W] of images uint8[N,H,W,3]."""
        return self._in_batches("score", images=images)

    def sample(self, num_images: int, **choice) -> dict[str, np.ndarray]:
        """New `images` uint8[N,H,W,3] and their `tokens` int32[N,T].

        Args:
            num_images: N.
            **choice: seed, temperature, top_k, top_p.
        """
        check_limits(num_images=num_images)
        params = SamplingParams(**choice)
        parts = [
            self._ask("sample", num_images=np.int32(size), **params.for_image(start).as_dict())
            for start, size in self._parts(num_images)
        ]
        return _joined(parts)

    def complete(self, images: np.ndarray, num_given: int, **choice) -> dict[str, np.ndarray]:
        """`images` and `tokens` whose first `num_given` raster pixels are those of `images`.

        Args:
            images: uint8[N,H,W,3].
            num_given: 0..T.
            **choice: As in `sample`.
        """
        height, width = self.image_size
        check_num_given(num_given, height * width)
        params = SamplingParams(**choice)
        return self._in_batches("complete", params, images=images, num_given=np.int32(num_given))

    def _in_batches(self, name: str, params=None, **inputs) -> dict[str, np.ndarray]:
        """Cuts the arrays among the inputs; numbers go with each part."""
        parts = []
        count = max(len(array) for array in inputs.values() if array.ndim)
        for start, size in self._parts(count):
            part = {
                key: array[start : start + size] if array.ndim else array
                for key, array in inputs.items()
            }
            later = params.for_image(start).as_dict() if params else {}
            parts.append(self._ask(name, **part, **later))
        return _joined(parts)

    def _parts(self, count: int) -> list[tuple[int, int]]:
        """(start, size) of each request."""
        size = self._batch_size
        return [(start, min(size, count - start)) for start in range(0, count, size)]

    def _ask(self, name: str, **inputs) -> dict[str, np.ndarray]:
        return self._transport.predict(name, self._signature(name), inputs)

    def _signature(self, name: str) -> Signature:
        return named(self._signatures, name)


def _joined(parts: list[dict]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _objects(files: list[bytes]) -> np.ndarray:
    array = np.empty(len(files), object)
    array[:] = files
    return array
