"""The functions behind a SavedModel's signatures: named tensors in, a dict of named tensors out.

`SignatureFunctions` has one method per entry of `spec.SIGNATURES`, of the same name and inputs.
`build_functions` makes them into `tf.function`s: none is compiled by XLA, keeps state or uses
random numbers other than those of its seed.
"""

import inspect

import tensorflow as tf

from igpt_tf.data.decoding import decode_images
from igpt_tf.sampling.params import LIMITS
from igpt_tf.sampling.sampler import complete, inpaint, sample
from igpt_tf.savedmodel import spec


class SignatureFunctions:
    """The signatures of a model as methods of tensors.

    Args:
        network: An `ImageGPT`.
        palette: Its `Palette`.
        objective: The `Objective` that it was trained on.
        classifier: The `Classifier` around the network; None for a pretrained model.
        masks: bool[K,T], the ensemble of a masked classifier; None otherwise.
    """

    def __init__(self, network, palette, objective, classifier=None, masks=None):
        self.network, self.palette, self.objective = network, palette, objective
        self.classifier, self.masks = classifier, masks

    def encode(self, images):
        return {"tokens": self._tokens(images)}

    def decode(self, tokens):
        size = len(self.palette)
        is_valid = tf.reduce_all((tokens >= 0) & (tokens < size))
        with tf.control_dependencies([tf.Assert(is_valid, [f"tokens must be 0 to {size - 1}"])]):
            return {"images": self._images(tf.identity(tokens))}

    def features(self, images):
        return {"features": self.network.features(self._tokens(images))}

    def features_bytes(self, image_bytes):
        return self.features(self._read_files(image_bytes))

    def score(self, images):
        nats = self.objective.token_scores(self.network, self._tokens(images))
        return {
            "nats_per_token": tf.reduce_mean(nats, axis=1),
            "surprise": tf.reshape(nats, [-1, *self.network.image_size]),
        }

    def sample(self, num_images, **params):
        return self._generated(sample(self.network, num_images, **params))

    def complete(self, images, num_given, **params):
        length = self.network.sequence_length
        is_valid = (num_given >= 0) & (num_given <= length)
        message = f"num_given must be 0 to {length}, the pixels of an image. Received: num_given="
        with tf.control_dependencies([tf.Assert(is_valid, [message, num_given])]):
            tokens = self._tokens(tf.identity(images))
        return self._generated(complete(self.network, tokens, num_given, **params))

    def inpaint(self, images, known, num_rounds, **params):
        tokens = self._tokens(images)
        known = tf.reshape(known, tf.shape(tokens))
        return self._generated(
            inpaint(self.network, tokens, known, num_rounds=num_rounds, **params)
        )

    def classify(self, images):
        probabilities, labels = self.classifier.classify(self._tokens(images), self.masks)
        return {"probabilities": probabilities, "labels": labels}

    def classify_bytes(self, image_bytes):
        return self.classify(self._read_files(image_bytes))

    def _tokens(self, images):
        """uint8[B,H,W,3] -> int32[B,T], one image at a time to bound the memory of distances."""
        return tf.map_fn(
            lambda image: self.palette.encode_tensor(image[None])[0],
            images,
            fn_output_signature=tf.TensorSpec([self.network.sequence_length], tf.int32),
        )

    def _images(self, tokens):
        return self.palette.decode_tensor(tokens, self.network.image_size)

    def _generated(self, tokens):
        return {"images": self._images(tokens), "tokens": tokens}

    def _read_files(self, image_bytes):
        return decode_images(image_bytes, self.network.image_size)


def build_functions(functions: SignatureFunctions, metadata: dict) -> dict:
    """Builds the signatures of the model with this metadata: name -> `tf.function`."""
    built = {
        name: _build(signature, getattr(functions, name))
        for name, signature in spec.available_signatures(metadata).items()
        if name != spec.DEFAULT
    }
    return {**built, spec.DEFAULT: built[spec.default_signature(metadata)]}


def _build(signature: spec.Signature, method):
    """A `tf.function` of the signature's inputs, which checks their limits first."""

    def function(*tensors):
        inputs = dict(zip(signature.inputs, tensors, strict=True))
        with tf.control_dependencies(_limit_checks(inputs)):
            return method(**{name: tf.identity(tensor) for name, tensor in inputs.items()})

    # TensorFlow takes the inputs' names from here, and the defaults, which it stores for
    # TensorFlow Serving and for callers of the loaded function.
    function.__signature__ = inspect.Signature(
        [_parameter(name, tensor) for name, tensor in signature.inputs.items()]
    )
    input_specs = [tensor_spec(name, tensor) for name, tensor in signature.inputs.items()]
    return tf.function(function, input_signature=input_specs, autograph=False)


def _parameter(name: str, tensor: spec.TensorSpec) -> inspect.Parameter:
    default = inspect.Parameter.empty
    if tensor.optional:
        default = tf.constant(spec.default_value(name), tensor.dtype)
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)


def tensor_spec(name: str, tensor: spec.TensorSpec) -> tf.TensorSpec:
    """TensorFlow's form of a spec with sizes; the letter B becomes a dynamic axis."""
    shape = [None if axis == "B" else axis for axis in tensor.axes]
    return tf.TensorSpec(shape, tensor.dtype, name)


def _limit_checks(inputs: dict) -> list:
    """Assertions of `LIMITS`. Every int32 is a valid seed."""
    return [
        tf.Assert(
            LIMITS[name][1](tensor),
            [f"{name} must be {LIMITS[name][0]}. Received: {name}=", tensor],
        )
        for name, tensor in inputs.items()
        if name in LIMITS and name != "seed"
    ]
