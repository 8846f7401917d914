"""The client of a served model: arrays in, arrays out. TensorFlow is not imported."""

import functools
from collections.abc import Iterator

import numpy as np

from igpt_tf.errors import InputError
from igpt_tf.sampling.params import PLAIN_SAMPLING, SamplingParams, check_limits, check_num_given
from igpt_tf.savedmodel.spec import SIGNATURES, Signature, TensorSpec, byte_strings
from igpt_tf.serving.transports import ServerError, Transport


class Client:
    """Sends requests to a served model, in batches.

    Image i of a call uses the seed `seed + i`, whatever the batch size.

    Args:
        transport: `transports.Rest` or `transports.Grpc`.
        batch_size: Images per request.

    Raises:
        InputError: By every method, if an argument is out of range or the model has no such
            signature. `transports.ServerError` and `RequestRefused` are InputErrors.

    Example:
        >>> client = Client(Rest(ServerAddress("localhost:8501", "igpt")))
        >>> client.sample(4, SamplingParams(seed=7))["images"].shape
        (4, 32, 32, 3)
    """

    def __init__(self, transport: Transport, batch_size: int = 16):
        check_limits(num_images=batch_size)
        self.batch_size = batch_size
        self._transport = transport

    @functools.cached_property
    def signatures(self) -> dict[str, Signature]:
        """The model's signatures with its sizes; only the batch axis is open.

        Raises:
            ServerError: They are not those of `spec.SIGNATURES`.
        """
        served = self._transport.signatures()
        address = self._transport.address
        try:
            _, height, width, _ = served["encode"].inputs["images"].axes
            sizes = {"H": height, "W": width, "T": height * width}
            return {
                name: _with_served_sizes(SIGNATURES[name].with_sizes(sizes), signature)
                for name, signature in served.items()
            }
        except (KeyError, TypeError, ValueError):
            raise ServerError(
                "the served model is not one of igpt_tf's. "
                f"Received: server={address.server}, model={address.model}"
            ) from None

    @functools.cached_property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the model."""
        _, height, width, _ = self.signatures["encode"].inputs["images"].axes
        return height, width

    def call(self, name: str, **inputs) -> dict[str, np.ndarray]:
        """Sends one request and checks its answer against the signature.

        Args:
            name: Name of the signature.
            **inputs: Its inputs, see `spec.SIGNATURES`; a leading batch axis of any size.

        Returns:
            Output name -> array of the signature's type and shape; all numbers are finite.

        Raises:
            InputError: The model has no such signature, or an input has the wrong type or shape.
            ServerError: No answer, or one that is not the signature's.
            RequestRefused: The server refuses the values.
        """
        if name not in self.signatures:
            raise InputError(
                f"the served model has no signature {name}, only {', '.join(self.signatures)}. "
                f"Received: signature={name}"
            )
        signature = self.signatures[name]
        arrays = {key: _as_input(key, inputs[key], spec) for key, spec in signature.inputs.items()}
        batched = [array for array in arrays.values() if array.ndim]
        batch_size = len(batched[0]) if batched else int(arrays["num_images"])
        outputs = signature.with_sizes({"B": batch_size}).outputs
        answer = self._transport.predict(name, arrays, outputs)
        for key, spec in outputs.items():
            if not spec.accepts(str(answer[key].dtype), answer[key].shape):
                found = TensorSpec(str(answer[key].dtype), answer[key].shape)
                raise self._transport.address.wrong_answer(name, f"{key} is {found}, not {spec}")
            if not np.all(np.isfinite(answer[key])):
                raise self._transport.address.wrong_answer(name, f"{key} is not finite")
        return answer

    def features(self, contents: list[bytes]) -> dict[str, np.ndarray]:
        """Returns `features` float32[N,L+1,D] of the contents of image files."""
        return self._call_in_batches("features_bytes", image_bytes=byte_strings(contents))

    def classify(self, contents: list[bytes]) -> dict[str, np.ndarray]:
        """Returns `probabilities` float32[N,C] and `labels` int32[N] of contents of image files."""
        return self._call_in_batches("classify_bytes", image_bytes=byte_strings(contents))

    def score(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `nats_per_token` float32[N] and `surprise` float32[N,H,W].

        Args:
            images: uint8[N,H,W,3].
        """
        return self._call_in_batches("score", images=images)

    def sample(
        self, num_images: int, params: SamplingParams = PLAIN_SAMPLING
    ) -> dict[str, np.ndarray]:
        """Returns generated `images` uint8[N,H,W,3] and their `tokens` int32[N,T]."""
        check_limits(num_images=num_images)
        return _concatenate(
            self.call("sample", num_images=stop - start, **params.for_image(start).as_dict())
            for start, stop in self._batches(num_images)
        )

    def complete(
        self, images: np.ndarray, num_given: int, params: SamplingParams = PLAIN_SAMPLING
    ) -> dict[str, np.ndarray]:
        """Returns `images` and `tokens` that keep the first raster pixels of `images`.

        Args:
            images: uint8[N,H,W,3].
            num_given: Number of raster pixels kept, 0 to T.
            params: Sampling parameters.
        """
        height, width = self.image_size
        check_num_given(num_given, height * width)
        return self._call_in_batches("complete", params, images=images, num_given=num_given)

    def inpaint(
        self,
        images: np.ndarray,
        known: np.ndarray,
        params: SamplingParams = PLAIN_SAMPLING,
        num_rounds: int = 8,
    ) -> dict[str, np.ndarray]:
        """Returns `images` and `tokens` that keep the known pixels of `images` (masked models).

        Args:
            images: uint8[N,H,W,3].
            known: bool[N,H,W], True where a pixel is kept.
            params: Sampling parameters.
            num_rounds: Number of forward passes, 1 to 1024.
        """
        check_limits(num_rounds=num_rounds)
        return self._call_in_batches(
            "inpaint", params, images=images, known=known, num_rounds=num_rounds
        )

    def _call_in_batches(
        self, name: str, params: SamplingParams | None = None, **inputs
    ) -> dict[str, np.ndarray]:
        """Cuts the arrays among the inputs into batches; numbers go with every batch."""
        num_images = max(len(value) for value in inputs.values() if np.ndim(value))
        return _concatenate(
            self.call(
                name,
                **{key: v[start:stop] if np.ndim(v) else v for key, v in inputs.items()},
                **(params.for_image(start).as_dict() if params else {}),
            )
            for start, stop in self._batches(num_images)
        )

    def _batches(self, num_images: int) -> list[tuple[int, int]]:
        """(start, stop) of each batch."""
        size = self.batch_size
        return [(start, min(start + size, num_images)) for start in range(0, num_images, size)]


def _with_served_sizes(expected: Signature, served: Signature) -> Signature:
    """Replaces the letters in the shapes of `expected`, except B, by the sizes of `served`.

    Raises:
        ValueError, KeyError: The signatures differ.
    """
    sizes = {}
    for specs, found in ((expected.inputs, served.inputs), (expected.outputs, served.outputs)):
        if specs.keys() != found.keys():
            raise ValueError("wrong names")
        for key, spec in specs.items():
            if not spec.accepts(found[key].dtype, found[key].axes):
                raise ValueError("wrong type or shape")
            sizes |= dict(zip(spec.axes, found[key].axes, strict=True))
    return expected.with_sizes(
        {axis: size for axis, size in sizes.items() if axis != "B" and size is not None}
    )


def _as_input(name: str, value, spec: TensorSpec) -> np.ndarray:
    array = np.asarray(value, object if spec.dtype == "string" else None)
    if not spec.axes:  # Python numbers
        array = array.astype(spec.dtype)
    found = TensorSpec("string" if array.dtype == object else str(array.dtype), array.shape)
    if not spec.accepts(found.dtype, found.axes):
        raise InputError(f"{name} must be {spec}. Received: {found}")
    return array


def _concatenate(answers: Iterator[dict]) -> dict[str, np.ndarray]:
    answers = list(answers)
    return {key: np.concatenate([answer[key] for answer in answers]) for key in answers[0]}
