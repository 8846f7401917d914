"""A palette fitted to images, and what it does to them: used colours, PSNR, and a look at it."""

import numpy as np

from igpt_tf.data import Source, image_folder
from igpt_tf.data.sources import Examples
from igpt_tf.errors import InputError
from igpt_tf.image_grid import grid
from igpt_tf.palette import Palette

_NUM_SHOWN = 8


def source_of(source: Source | None, folder: str | None, image_size: int) -> Source:
    """`source`, or the images of `folder`. Raises: InputError unless there is one of the two."""
    if (source is None) == (folder is None):
        raise InputError(
            "give either a folder, --images=FOLDER, or a data set, such as "
            f"--gin_param='fit_palette.source=@digits()'. Received: images={folder}"
        )
    return source or image_folder(directory=folder, image_size=image_size)


def fit(
    source: Source, *, num_colours: int, num_images: int, seed: int
) -> tuple[Palette, dict, np.ndarray]:
    """Fits a palette on training images and measures it on held-out ones.

    Args:
        source: The images.
        num_colours: V.
        num_images: Random images to use of each part, at most.
        seed: Fixes the result.

    Returns:
        (the palette, its report as `measure` has it, a picture uint8[H',W',3]).

    Raises:
        InputError: The images hold too few colours.
    """
    train, heldout = (_some(part, num_images, seed) for part in (source.train, source.valid))
    palette = Palette.fit(train, num_colours, seed)
    report = {"data": source.description, "seed": seed, **measure(palette, heldout)}
    return palette, report, before_and_after(palette, heldout)


def measure(palette: Palette, images: np.ndarray) -> dict:
    """How well a palette shows images uint8[N,H,W,3].

    Returns:
        {"num_colours", "used_colours", "psnr": mean dB over images, "num_images", "fingerprint"}.
    """
    tokens = palette.encode(images)
    shown = palette.decode(tokens, images.shape[1:3])
    return {
        "num_colours": len(palette),
        "used_colours": len(np.unique(tokens)),
        "psnr": float(np.mean([_psnr(*pair) for pair in zip(images, shown, strict=True)])),
        "num_images": len(images),
        "fingerprint": palette.fingerprint,
    }


def before_and_after(palette: Palette, images: np.ndarray) -> np.ndarray:
    """A picture uint8[H',W',3]: some images above, the same through the palette below."""
    images = images[:: max(1, len(images) // _NUM_SHOWN)][:_NUM_SHOWN]
    shown = palette.decode(palette.encode(images), images.shape[1:3])
    return grid(np.concatenate([images, shown]), columns=len(images))


def _some(examples: Examples, num_images: int, seed: int) -> np.ndarray:
    """uint8[M,H,W,3]: at most `num_images` random ones."""
    order = np.random.RandomState(seed).permutation(len(examples))[:num_images]
    return examples.take(np.sort(order)).arrays()[0]


def _psnr(image: np.ndarray, shown: np.ndarray) -> float:
    """dB; a perfect image counts as if one channel of one pixel were off by one."""
    error = np.mean((image.astype("float64") - shown) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1 / image.size)))
