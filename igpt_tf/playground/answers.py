"""The page's questions as questions to a model, and the answers as JSON."""

import base64
import io
import time

import numpy as np
from PIL import Image

from igpt_tf.errors import InputError
from igpt_tf.playground.backends import Backend
from igpt_tf.playground.door import MOST_COMPLETIONS, Wish
from igpt_tf.sampling.params import MAX_FILE_BYTES

_NUM_ROUNDS = 8


def about(backend: Backend) -> dict:
    """What the page must know of the model to show its controls."""
    metadata, names = backend.metadata, backend.signature_names
    return {
        "where": backend.where,
        "image_size": list(backend.image_size),
        "paints": "complete" in names,
        "hides": "inpaint" in names,
        "scores": "score" in names,
        "classifies": "classify" in names,
        "vocabulary_size": metadata.get("model", {}).get("vocabulary_size"),
        "step": metadata.get("step"),
        "nats_per_token": metadata.get("nats_per_token"),
        "most_completions": MOST_COMPLETIONS,
        "most_bytes": MAX_FILE_BYTES,
    }


def shrunk(backend: Backend, image: np.ndarray) -> dict:
    """The image uint8[1,H,W,3] in the palette's colours, as the model sees it."""
    tokens = backend.ask("encode", images=image)["tokens"]
    return {"image": _url(backend.ask("decode", tokens=tokens)["images"][0])}


def completions(backend: Backend, wish: Wish) -> dict:
    """Finished pictures. (Signatures answer once: painting cannot be watched, only replayed.)"""
    started = time.monotonic()
    images = wish.image.repeat(wish.completions, axis=0)
    if wish.hidden is None:
        answer = backend.ask(
            "complete", images=images, num_given=wish.num_given, **wish.params.as_dict()
        )
    else:
        known = _known(backend, wish).repeat(wish.completions, axis=0)
        answer = backend.ask(
            "inpaint", images=images, known=known, num_rounds=_NUM_ROUNDS, **wish.params.as_dict()
        )
    return {
        "images": [_url(image) for image in answer["images"]],
        "seconds": round(time.monotonic() - started, 2),
    }


def score(backend: Backend, image: np.ndarray) -> dict:
    """Nats at each pixel, and their mean."""
    answer = backend.ask("score", images=image)
    return {
        "nats_per_token": float(answer["nats_per_token"][0]),
        "surprise": answer["surprise"][0].astype(float).round(4).tolist(),
    }


def classes(backend: Backend, image: np.ndarray) -> dict:
    """Names and probabilities, the likeliest first."""
    shares = backend.ask("classify", images=image)["probabilities"][0]
    names = backend.metadata.get("class_names") or [f"class {i}" for i in range(len(shares))]
    order = np.argsort(-shares, kind="stable")
    return {"classes": [{"name": str(names[i]), "probability": float(shares[i])} for i in order]}


def _known(backend: Backend, wish: Wish) -> np.ndarray:
    """bool[1,H,W]: given and not hidden."""
    if "inpaint" not in backend.signature_names:
        raise InputError(
            "this model paints in raster order and cannot fill in hidden pixels; only masked "
            "(BERT) models can. Received: hidden"
        )
    places = np.arange(wish.hidden.size).reshape(wish.hidden.shape)
    return (places < wish.num_given) & ~wish.hidden


def _url(image: np.ndarray) -> str:
    """uint8[H,W,3] as a data URL of a PNG."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
