"""The named functions of a SavedModel. Each takes named tensors and returns a dict of them.

No function is jit-compiled, keeps state, or draws random numbers other than from its seed.
"""

import tensorflow as tf

from igpt_tf.sampling.params import LIMITS
from igpt_tf.sampling.sampler import complete, inpaint, sample
from igpt_tf.savedmodel import pixels
from igpt_tf.savedmodel.scoring import surprise

_SEED = tf.TensorSpec([], tf.int32, "seed")
_CHOICE = (
    _SEED,
    tf.TensorSpec([], tf.float32, "temperature"),
    tf.TensorSpec([], tf.int32, "top_k"),
    tf.TensorSpec([], tf.float32, "top_p"),
)


def pretrained(model, palette) -> dict:
    """Every signature of a pretrained model, name -> tf.function."""
    functions = {
        **coding(model, palette),
        **features(model, palette),
        **scoring(model, palette),
        **painting(model, palette),
    }
    return {**functions, "serving_default": functions["features"]}


def classifying(classifier, palette, masks) -> dict:
    """Every signature of a fine-tuned model; arguments as in `write_classifier`."""
    network = classifier.network

    @_signature(images_of(network))
    def classify(images):
        tokens = pixels.encode(palette, images)
        probabilities, labels = classifier.classify(tokens, masks)
        return {"probabilities": probabilities, "labels": labels}

    @_signature(tf.TensorSpec([None], tf.string, "image_bytes"))
    def classify_bytes(image_bytes):
        return classify(pixels.read_files(image_bytes, network.image_size))

    return {
        **coding(network, palette),
        **features(network, palette),
        **scoring(network, palette),
        **painting(network, palette),
        "classify": classify,
        "classify_bytes": classify_bytes,
        "serving_default": classify,
    }


def images_of(model) -> tf.TensorSpec:
    """uint8[B,H,W,3], the input `images`."""
    return tf.TensorSpec([None, *model.image_size, 3], tf.uint8, "images")


def coding(model, palette) -> dict:
    """`encode` and `decode`."""

    @_signature(images_of(model))
    def encode(images):
        return {"tokens": pixels.encode(palette, images)}

    @_signature(tf.TensorSpec([None, model.sequence_length], tf.int32, "tokens"))
    def decode(tokens):
        return {"images": pixels.decode(palette, tokens, model.image_size)}

    return {"encode": encode, "decode": decode}


def features(model, palette) -> dict:
    """`features` and `features_bytes`."""

    @_signature(images_of(model))
    def features(images):
        return {"features": model.features(pixels.encode(palette, images))}

    @_signature(tf.TensorSpec([None], tf.string, "image_bytes"))
    def features_bytes(image_bytes):
        return features(pixels.read_files(image_bytes, model.image_size))

    return {"features": features, "features_bytes": features_bytes}


def scoring(model, palette) -> dict:
    """`score`."""

    @_signature(images_of(model))
    def score(images):
        nats = surprise(model, pixels.encode(palette, images))
        return {
            "nats_per_token": tf.reduce_mean(nats, axis=1),
            "surprise": tf.reshape(nats, [-1, *model.image_size]),
        }

    return {"score": score}


def painting(model, palette) -> dict:
    """`complete`, and `sample` (causal models) or `inpaint` (masked ones)."""
    own = _sampling if model.causal else _inpainting

    @_signature(images_of(model), tf.TensorSpec([], tf.int32, "num_given"), *_CHOICE)
    def complete_(images, num_given, seed, temperature, top_k, top_p):
        checks = _checks(temperature=temperature, top_k=top_k, top_p=top_p)
        with tf.control_dependencies([*checks, _check_given(num_given, model.sequence_length)]):
            tokens = tf.identity(pixels.encode(palette, images))
        choice = _choice(seed, temperature, top_k, top_p)
        return _painted(model, palette, complete(model, tokens, num_given, **choice))

    return {"complete": complete_, **own(model, palette)}


def _sampling(model, palette) -> dict:
    @_signature(tf.TensorSpec([], tf.int32, "num_images"), *_CHOICE)
    def sample_(num_images, seed, temperature, top_k, top_p):
        checks = _checks(num_images=num_images, temperature=temperature, top_k=top_k, top_p=top_p)
        with tf.control_dependencies(checks):
            num_images = tf.identity(num_images)
        choice = _choice(seed, temperature, top_k, top_p)
        return _painted(model, palette, sample(model, num_images, **choice))

    return {"sample": sample_}


def _inpainting(model, palette) -> dict:
    known = tf.TensorSpec([None, *model.image_size], tf.bool, "known")

    @_signature(images_of(model), known, tf.TensorSpec([], tf.int32, "num_rounds"), *_CHOICE)
    def inpaint_(images, known, num_rounds, seed, temperature, top_k, top_p):
        checks = _checks(num_rounds=num_rounds, temperature=temperature, top_k=top_k, top_p=top_p)
        with tf.control_dependencies(checks):
            tokens = tf.identity(pixels.encode(palette, images))
        known = tf.reshape(known, tf.shape(tokens))
        choice = _choice(seed, temperature, top_k, top_p)
        painted = inpaint(model, tokens, known, num_rounds=num_rounds, **choice)
        return _painted(model, palette, painted)

    return {"inpaint": inpaint_}


def _signature(*inputs):
    """Decorates a function of named tensors; it is never jit-compiled."""
    return tf.function(input_signature=inputs, autograph=False)


def _choice(seed, temperature, top_k, top_p) -> dict:
    return {"seed": seed, "temperature": temperature, "top_k": top_k, "top_p": top_p}


def _painted(model, palette, tokens) -> dict:
    return {"images": palette.decode_tensor(tokens, model.image_size), "tokens": tokens}


def _checks(**arguments) -> list:
    """Assertions of `LIMITS`; what depends on them runs only if they hold."""
    return [
        tf.Assert(
            LIMITS[name][1](value), [f"{name} must be {LIMITS[name][0]}. Received: {name}=", value]
        )
        for name, value in arguments.items()
    ]


def _check_given(num_given, length: int):
    message = f"num_given must be 0 to {length}, the pixels of an image. Received: num_given="
    return tf.Assert((num_given >= 0) & (num_given <= length), [message, num_given])
