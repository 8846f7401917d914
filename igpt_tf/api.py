"""The Python API: a pretrained model samples, completes, in-paints, encodes and scores."""

import dataclasses
import functools
import os

import numpy as np
import tensorflow as tf

from igpt_tf import files
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import objective_of_model
from igpt_tf.palette import Palette, check_palette
from igpt_tf.sampling.params import SamplingParams, check_limits
from igpt_tf.sampling.sampler import NUM_ROUNDS, Sampler
from igpt_tf.savedmodel.load import load_model


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained model with what its use requires.

    Attributes:
        model: The network.
        palette: Maps images to tokens and back.
        metadata: Description from the SavedModel: objective, data set, step, held-out loss.

    Raises:
        InputError: The palette is not one of the model's size.
    """

    model: ImageGPT
    palette: Palette
    metadata: dict

    def __post_init__(self):
        check_palette(self.palette, self.model)

    @functools.cached_property
    def _sampler(self) -> Sampler:
        return Sampler(self.model)

    @functools.cached_property
    def _features(self):
        return tf.function(self.model.features, autograph=False, reduce_retracing=True)

    @functools.cached_property
    def _token_scores(self):
        objective = objective_of_model(self.metadata.get("objective", {}), self.model)
        scores = functools.partial(objective.token_scores, self.model)
        return tf.function(scores, autograph=False, reduce_retracing=True)

    def _map_images(self, function, images: np.ndarray, batch_size: int) -> np.ndarray:
        """Concatenates the results of a function of tokens int32[B,T]."""
        tokens = self._encode(images)
        check_limits(batch_size=batch_size)
        starts = range(0, len(tokens), batch_size)
        batches = [tf.constant(tokens[start : start + batch_size]) for start in starts]
        return np.concatenate([function(batch).numpy() for batch in batches])

    def _encode(self, images) -> np.ndarray:
        """uint8[N,H,W,3] -> tokens int32[N,T]. Raises: InputError: Images the model cannot take."""
        images = np.asarray(images)
        tokens = self.palette.encode(images)
        size = self.model.image_size
        if not len(images) or images.shape[1:3] != size:
            raise InputError(
                f"the model takes images uint8[N,{size[0]},{size[1]},3], at least one; "
                "igpt_tf.data.load_images resizes files and gives this type. "
                f"Received: shape={images.shape}"
            )
        return tokens


def load(path: str) -> Pretrained:
    """Loads a SavedModel that a run or a conversion has written.

    Args:
        path: Folder of the SavedModel, a folder of numbered versions such as `export/`, or the
            name of a model that comes with the package, such as "digits". `~` is expanded.

    Raises:
        InputError: The folder does not hold such a model, or it is damaged.

    Example:
        >>> pretrained = igpt_tf.load(path)
        >>> pretrained.model.image_size
        (4, 4)
        >>> len(pretrained.palette)
        8
    """
    return Pretrained(*load_model(files.local_path(os.fspath(path), "path")))


def sample(pretrained: Pretrained, num_images: int, **params) -> np.ndarray:
    """Samples new images.

    Args:
        pretrained: A model that was trained autoregressively.
        num_images: Number of images N.
        **params: Arguments of `SamplingParams`: seed, temperature, top_k, top_p.

    Returns:
        uint8[N,H,W,3]. Image i depends on `seed + i` only.

    Raises:
        InputError: A parameter is out of range, or the model is a masked one.

    Example:
        >>> igpt_tf.sample(pretrained, 2, seed=7, top_p=0.9).shape
        (2, 4, 4, 3)
    """
    tokens = pretrained._sampler.sample(num_images, SamplingParams(**params))
    return pretrained.palette.decode(tokens, pretrained.model.image_size)


def complete(pretrained: Pretrained, images, num_given: int, **params) -> np.ndarray:
    """Keeps the first pixels of each image and generates the rest.

    Args:
        pretrained: A model.
        images: uint8[N,H,W,3] of the model's size.
        num_given: Number of pixels to keep, in raster order.
        **params: As for `sample`.

    Returns:
        uint8[N,H,W,3] in the colours of the palette.

    Raises:
        InputError: A parameter is out of range, or the images have another size.

    Example:
        >>> images = np.zeros((3, 4, 4, 3), "uint8")
        >>> completed = igpt_tf.complete(pretrained, images, num_given=8)
        >>> completed.shape, completed[:, :2].max()
        ((3, 4, 4, 3), np.uint8(0))
    """
    tokens = pretrained._encode(images)
    tokens = pretrained._sampler.complete(tokens, num_given, SamplingParams(**params))
    return pretrained.palette.decode(tokens, pretrained.model.image_size)


def inpaint(
    pretrained: Pretrained, images, known, *, num_rounds: int = NUM_ROUNDS, **params
) -> np.ndarray:
    """Keeps the known pixels of each image and generates the others, anywhere in the image.

    Args:
        pretrained: A model that was trained on masked images.
        images: uint8[N,H,W,3] of the model's size; unknown pixels are not read.
        known: bool[N,H,W].
        num_rounds: Number of rounds of prediction; more take longer and give better images.
        **params: As for `sample`.

    Returns:
        uint8[N,H,W,3] in the colours of the palette.

    Raises:
        InputError: A parameter is out of range, the arrays have other shapes, or the model is an
            autoregressive one.

    Example:
        >>> images = np.zeros((3, 4, 4, 3), "uint8")
        >>> known = np.ones((3, 4, 4), bool)
        >>> known[:, 1:3, 1:3] = False
        >>> igpt_tf.inpaint(masked, images, known).shape
        (3, 4, 4, 3)
    """
    tokens = pretrained._encode(images)
    known = np.asarray(known)
    if known.dtype != bool or known.shape != np.shape(images)[:3]:
        raise InputError(
            "known must be bool[N,H,W], one value per pixel of the images. Received: "
            f"known.dtype={known.dtype}, known.shape={known.shape}, images.shape={np.shape(images)}"
        )
    known = known.reshape(len(known), -1)
    tokens = pretrained._sampler.inpaint(
        tokens, known, SamplingParams(**params), num_rounds=num_rounds
    )
    return pretrained.palette.decode(tokens, pretrained.model.image_size)


def features(pretrained: Pretrained, images, *, batch_size: int = 64) -> np.ndarray:
    """Computes representations of images, as linear probes use them.

    Args:
        pretrained: A model.
        images: uint8[N,H,W,3] of the model's size.
        batch_size: Number of images at a time.

    Returns:
        float32[N,L+1,D]: the mean over positions of each layer's normalised input; index L is the
        final norm. Layers in the middle separate classes best.

    Raises:
        InputError: The images are of another type or size, or `batch_size` is not positive.

    Example:
        >>> igpt_tf.features(pretrained, images).shape  # 2 layers of width 16
        (3, 3, 16)
    """
    return pretrained._map_images(pretrained._features, images, batch_size)


def score(pretrained: Pretrained, images, *, batch_size: int = 64) -> np.ndarray:
    """Computes how improbable the model finds each pixel.

    Args:
        pretrained: A model.
        images: uint8[N,H,W,3] of the model's size.
        batch_size: Number of images at a time.

    Returns:
        float32[N,H,W], nats per pixel. The mean over an image is its loss in nats per token: the
        negative log-likelihood of an autoregressive model, a pseudo-likelihood of a masked one.

    Raises:
        InputError: As `features`; or the metadata name no objective, or one of another model.

    Example:
        >>> igpt_tf.score(pretrained, images).shape
        (3, 4, 4)
    """
    scores = pretrained._map_images(pretrained._token_scores, images, batch_size)
    return scores.reshape(-1, *pretrained.model.image_size)
