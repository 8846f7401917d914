"""Grids of small images with captions, as PNG files and animations."""

import functools
import os
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from igpt_tf import files
from igpt_tf.errors import InputError

_MIN_SIDE = 96  # pixels; smaller images are enlarged to about this
_GAP = 0.05  # of an enlarged image's longer side
_BACKGROUND = 255
_TEXT_COLOUR = (60, 60, 60)
_FONT_SIZES = range(13, 7, -1)  # pixels, in the order tried
_KNOWN_BRIGHTNESS = 128  # pixels of a mask at least this bright are known
_UNKNOWN = 160  # grey of pixels that are not known


def grid(
    images: np.ndarray,
    columns: int | None = None,
    scale: int | None = None,
    *,
    title: str = "",
    captions: Sequence[str] = (),
) -> np.ndarray:
    """Lays images out in rows on a white background.

    Args:
        images: uint8[N,H,W,3].
        columns: Images per row; None for a nearly square grid.
        scale: Factor by which images are enlarged; None for one that makes small images visible.
        title: Text above the grid, wrapped to its width.
        captions: Text above each column, at most one per column.

    Returns:
        uint8[H',W',3]; unused cells of the last row are white.

    Example:
        grid(pairs, columns=2, title="runs/digits, step 1,400", captions=["original", "completion"])
    """
    if not len(images):
        raise InputError("a grid needs at least one image. Received: 0 images")
    columns = columns or int(np.ceil(len(images) ** 0.5))
    tiles = enlarge(images, scale)
    num, height, width, _ = tiles.shape
    gap = max(1, round(_GAP * max(height, width)))
    rows = -(-num // columns)
    picture = np.full(
        (rows * (height + gap) + gap, columns * (width + gap) + gap, 3), _BACKGROUND, "uint8"
    )
    for i, tile in enumerate(tiles):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        picture[top : top + height, left : left + width] = tile
    centres = [gap + column * (width + gap) + width / 2 for column in range(len(captions))]
    header = [_text_row(captions, centres, picture.shape[1], width + gap)] if captions else []
    header = _title_rows(title, picture.shape[1]) + header
    return np.concatenate([*header, picture])


def _text_row(
    texts: Sequence[str], centres: Sequence[float], width: int, max_width: int
) -> np.ndarray:
    """uint8[h,width,3] with each text centred on a column, in the largest font that fits."""
    texts = [in_font(text) for text in texts]
    fonts = [ImageFont.truetype(_font_file(), size) for size in _FONT_SIZES]
    fitting = (font for font in fonts if all(font.getlength(t) <= max_width for t in texts))
    font = next(fitting, fonts[-1])
    row = Image.new("RGB", (width, round(1.6 * font.size)), (_BACKGROUND,) * 3)
    draw = ImageDraw.Draw(row)
    for text, centre in zip(texts, centres, strict=True):
        draw.text((centre, row.height / 2), text, _TEXT_COLOUR, font, anchor="mm")
    return np.asarray(row)


def _title_rows(title: str, width: int) -> list[np.ndarray]:
    """The title in lines that are as wide as the grid, uint8[h,width,3] each."""
    if not title:
        return []
    per_character = ImageFont.truetype(_font_file(), _FONT_SIZES[0]).getlength("n")
    lines = textwrap.wrap(in_font(title), max(1, int(width / per_character)))
    return [_text_row([line], [width / 2], width, width) for line in lines]


def in_font(text: str) -> str:
    r"""`text` with escapes such as "\u72ac" for characters that the font of pictures lacks."""
    glyphs = _glyphs()
    return "".join(c if ord(c) in glyphs else c.encode("unicode_escape").decode() for c in text)


def _font_file() -> str:
    """DejaVu Sans, which comes with matplotlib and is its default; Pillow's has ASCII only."""
    import matplotlib

    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@functools.cache
def _glyphs() -> dict[int, int]:
    from matplotlib.ft2font import FT2Font

    return FT2Font(_font_file()).get_charmap()


def enlarge(images: np.ndarray, scale: int | None = None) -> np.ndarray:
    """uint8[N,H,W,3] -> uint8[N,sH,sW,3], nearest neighbour; s as in `grid`."""
    if scale is None:
        scale = max(1, _MIN_SIDE // max(images.shape[1:3]))
    return images.repeat(scale, axis=1).repeat(scale, axis=2)


def known_pixels(mask: np.ndarray, path: str) -> np.ndarray:
    """bool[H,W]: where a mask is bright, i.e. which pixels in-painting keeps.

    Args:
        mask: uint8[H,W,3].
        path: Its file, for the error.

    Raises:
        InputError: The mask is bright everywhere.
    """
    known = mask.mean(axis=-1) >= _KNOWN_BRIGHTNESS
    if known.all():
        raise InputError(
            "the mask hides nothing: bright pixels are kept, dark pixels are generated. "
            f"Received: known={path}"
        )
    return known


def hide_unknown(images: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`images` uint8[N,H,W,3] with the pixels that are not `known` bool[H,W] in grey."""
    return np.where(known[..., None], images, np.uint8(_UNKNOWN))


def write_png(path: str, image: np.ndarray) -> None:
    """Writes uint8[H,W,3] as a PNG file, atomically."""
    with files.atomic_write(path) as file:
        Image.fromarray(image).save(file, format="PNG")


def write_animation(path: str, frames: Sequence[np.ndarray], milliseconds: int = 60) -> None:
    """Writes an endless animation that shows its last frame for two seconds.

    Args:
        path: A .gif file (256 colours per frame) or a .png or .apng file (all colours).
        frames: uint8[H,W,3] each.
        milliseconds: Duration of a frame.
    """
    first, *rest = (Image.fromarray(frame) for frame in frames)
    with files.atomic_write(path) as file:
        first.save(
            file,
            format="GIF" if path.endswith(".gif") else "PNG",
            save_all=True,
            append_images=rest,
            duration=[milliseconds] * len(rest) + [2000],
            loop=0,
        )
