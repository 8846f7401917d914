"""Samples and completions from a SavedModel, and the images to complete."""

import os

import numpy as np
from tqdm import tqdm

from igpt_tf import runtime
from igpt_tf.data import Source
from igpt_tf.data.images import decode, read
from igpt_tf.errors import InputError
from igpt_tf.evaluation.splits import source_of
from igpt_tf.sampling import Sampler
from igpt_tf.sampling.params import SamplingParams
from igpt_tf.sampling.parts import paint_in_parts
from igpt_tf.savedmodel.load import SavedModel, load_model

_ENDINGS = (".png", ".jpg", ".jpeg")


class Compiled:
    """A SavedModel's `sample` and `complete`, compiled by XLA: slow to start, then faster.

    Args:
        model: The model; of it the weights are taken, not the graphs.
    """

    def __init__(self, model: SavedModel):
        network, self._palette, _ = load_model(model.path)
        self._sampler = Sampler(network, jit_compile=True)

    def signature(self, name: str):
        """As `SavedModel.signature`, of these two."""
        return {"sample": self._sample, "complete": self._complete}[name]

    def _sample(self, *, num_images, **params) -> dict:
        return self._painted(self._sampler.sample(num_images, SamplingParams(**params)))

    def _complete(self, *, images, num_given, **params) -> dict:
        tokens = self._palette.encode(images)
        params = SamplingParams(**params)
        return self._painted(self._sampler.complete(tokens, num_given, params))

    def _painted(self, tokens: np.ndarray) -> dict:
        return {"images": self._palette.decode(tokens, self._sampler.model.image_size)}


def sample(
    model: SavedModel | Compiled, num_images: int, *, params: SamplingParams, batch_size: int
) -> np.ndarray:
    """New images uint8[N,H,W,3]; image i is that of seed + i, whatever the batch size.

    Raises:
        InputError: The model cannot sample.
    """
    paint = model.signature("sample")
    return _in_batches(
        lambda part: paint(
            num_images=part.stop - part.start, **params.for_image(part.start).as_dict()
        ),
        num_images,
        batch_size,
        "sample",
    )


def complete(
    model: SavedModel | Compiled,
    images: np.ndarray,
    num_given: int,
    *,
    params: SamplingParams,
    batch_size: int,
) -> np.ndarray:
    """Keeps the first pixels of each image and paints the others.

    Args:
        model: The model.
        images: uint8[N,H,W,3].
        num_given: How many raster pixels are kept.
        params: How tokens are chosen.
        batch_size: Images at a time.

    Returns:
        uint8[N,H,W,3], in the colours of the palette.
    """
    paint = model.signature("complete")
    return _in_batches(
        lambda part: paint(
            images=images[part],
            num_given=num_given,
            **params.for_image(part.start).as_dict(),
        ),
        len(images),
        batch_size,
        "complete",
    )


def _in_batches(paint, num_images: int, batch_size: int, title: str) -> np.ndarray:
    painted = []
    with tqdm(total=num_images, unit="image", desc=title) as bar:
        for start in range(0, num_images, batch_size):
            batch = range(start, min(start + batch_size, num_images))
            painted.append(
                paint_in_parts(
                    lambda part: paint(part)["images"], batch, runtime.num_parallel_ops()
                )
            )
            bar.update(len(batch))
    return np.concatenate(painted)


def load_images(paths: list[str], image_size: tuple[int, int], most: int) -> np.ndarray:
    """uint8[N,H,W,3] from the first PNG or JPEG files of `paths`, shrunk and cropped to size.

    Raises:
        InputError: There are none, or one is missing, corrupt or too small.
    """
    files = [file for path in paths for file in _files(path)][:most]
    if not files:
        raise InputError(f"no images there (.png, .jpg). Received: images={', '.join(paths)}")
    return np.stack([decode(read(file), file, image_size) for file in files])


def originals(
    model: SavedModel, paths: list[str] | None, source: Source | None, num_images: int
) -> np.ndarray:
    """At most `num_images` images to complete, uint8[N,H,W,3]."""
    if paths is not None:
        return load_images(paths, model.image_size, num_images)
    heldout = source_of(model, source).valid
    return heldout.take(np.arange(min(num_images, len(heldout)))).arrays()[0]


def _files(path: str) -> list[str]:
    """The image files of a folder, sorted; or the file itself."""
    if not os.path.isdir(path):
        return [path]
    names = sorted(name for name in os.listdir(path) if name.lower().endswith(_ENDINGS))
    return [os.path.join(path, name) for name in names]
