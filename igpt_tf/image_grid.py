"""Pictures for people: grids of small images, and the files they go into."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from igpt_tf.errors import InputError

_WANTED_SIDE = 96  # pixels: small images are enlarged to about this
_GAP = 0.05  # of an enlarged image's longer side
_WHITE = 255


def grid(images: np.ndarray, columns: int | None = None, scale: int | None = None) -> np.ndarray:
    """Lays images out in rows on white, each pixel enlarged to a square.

    Args:
        images: uint8[N,H,W,3].
        columns: Images a row; nearly a square without.
        scale: Whole factor of enlargement; without, one that makes small images visible.

    Returns:
        uint8[H',W',3]; places of the last row that no image fills are white.
    """
    if not len(images):
        raise InputError("a picture needs at least one image. Received: 0 images")
    columns = columns or int(np.ceil(len(images) ** 0.5))
    tiles = enlarge(images, scale)
    num, height, width, _ = tiles.shape
    gap = max(1, round(_GAP * max(height, width)))
    rows = -(-num // columns)
    picture = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, 3), _WHITE, "uint8"
    )
    for i, tile in enumerate(tiles):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        picture[top : top + height, left : left + width] = tile
    return picture


def enlarge(images: np.ndarray, scale: int | None = None) -> np.ndarray:
    """uint8[N,H,W,3] -> uint8[N,sH,sW,3], nearest neighbour; s as in `grid`."""
    if scale is None:
        scale = max(1, _WANTED_SIDE // max(images.shape[1:3]))
    return images.repeat(scale, axis=1).repeat(scale, axis=2)


def write_png(path: str, image: np.ndarray) -> None:
    """Writes uint8[H,W,3]; the file is either whole or absent."""
    _written(path, lambda part: Image.fromarray(image).save(part, format="PNG"))


def write_animation(path: str, frames: Sequence[np.ndarray], milliseconds: int = 60) -> None:
    """Writes an animation that ends on its last frame for two seconds and starts again.

    Args:
        path: Ends in .gif or .png (an animated PNG, with every colour).
        frames: uint8[H,W,3] each.
        milliseconds: How long each frame is shown.
    """
    first, *rest = (Image.fromarray(frame) for frame in frames)
    options = {
        "format": "GIF" if path.endswith(".gif") else "PNG",
        "save_all": True,
        "append_images": rest,
        "duration": [milliseconds] * len(rest) + [2000],
        "loop": 0,
    }
    _written(path, lambda part: first.save(part, **options))


def _written(path: str, save) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    save(path + ".part")
    os.replace(path + ".part", path)
