"""Decoding of image files, inside a TensorFlow graph: the one path from a file to its pixels.

The input pipeline, the tools, the playground and the `_bytes` signatures of a SavedModel all call
`decode_image`, so that a file gives the same pixels everywhere. The graph holds TensorFlow's core
operations only and no Python, and so runs in TensorFlow Serving too.

What is read: PNG, JPEG, WebP, BMP (8 bits with a palette, 24 and 32 bits, uncompressed) and the
first frame of a GIF. The first bytes identify the format, not the file's name. The pixels are what
a viewer shows on a page of the background colour:

* turned upright by the EXIF orientation (JPEG, PNG and WebP);
* grey, palette and CMYK images as RGB, 16 bits per channel cut to 8;
* transparency composited on the background, white by default;
* a box of the proportions of `image_size`, resized to it by the mean over areas.

A file has at most `MAX_FILE_BYTES` and an image `MAX_FILE_PIXELS`. The resize works in bands, so
that an image costs 3 or 4 bytes of memory per pixel, and a large JPEG far less.
"""

import functools
import io
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from igpt_tf.errors import InputError
from igpt_tf.files import MAX_FILE_BYTES, MAX_FILE_PIXELS

WHITE = (255, 255, 255)

# The paper's ImageNet recipe: a 224 pixel crop after the shorter side became 256 to 384 pixels.
_CROP = 224
_SHORTER_SIDE = (256, 384)

# A JPEG decodes at 1/2, 1/4 or 1/8 of its size at little cost. At least four times the wanted size
# is decoded, so that the area resize determines the result (42 dB or better to the whole image's).
_DRAFT = 4

_BAND = 2**20  # pixels converted to floats at once
_HEAD = 64  # bytes that identify a file and hold its size (JPEG's size excepted)
_EXIF_BYTES = 2**20  # EXIF of a JPEG or PNG lies within so many bytes
_TIFF_BYTES = 2**16  # the most that an EXIF segment holds
_MAX_PARALLEL = 8  # images decoded at once by `load_images`

# (what the file is, first byte of the signature, signature). The first five can be decoded.
_SIGNATURES = (
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("WebP", 8, b"WEBP"),
    ("GIF", 0, b"GIF8"),
    ("BMP", 0, b"BM"),
    ("a Git LFS pointer (run `git lfs pull`)", 0, b"version https://git-lfs"),
    ("a web page or an SVG drawing", 0, b"<"),
    ("a web page or an SVG drawing", 0, b"\n<"),
    ("a web page or an SVG drawing", 0, b"\r\n<"),
    ("a web page or an SVG drawing", 0, b"\xef\xbb\xbf<"),
    ("a TIFF image", 0, b"II*\0"),
    ("a TIFF image", 0, b"MM\0*"),
    ("an AVIF image", 4, b"ftypavif"),
    ("a HEIC image or a video", 4, b"ftyp"),
    ("a JPEG XL image", 0, b"\xff\x0a"),
    ("a JPEG XL image", 4, b"JXL "),
    ("a JPEG 2000 image", 4, b"jP  "),
    ("a Photoshop file", 0, b"8BPS"),
    ("an icon", 0, b"\0\0\1\0"),
    ("a NumPy file", 0, b"\x93NUMPY"),
    ("a PDF file", 0, b"%PDF"),
    ("a zip archive", 0, b"PK\3\4"),
    ("a gzip archive", 0, b"\x1f\x8b"),
    ("filled with zeros, an unfinished copy", 0, bytes(_HEAD)),
    ("of no known kind", 0, b""),
)
_DECODED = ("JPEG", "PNG", "WebP", "GIF", "BMP")
_JPEG, _PNG, _WEBP, _GIF, _BMP = range(5)

# What each EXIF orientation asks for, in this order.
_TRANSPOSED = (5, 6, 7, 8)
_ROWS_REVERSED, _COLUMNS_REVERSED = (3, 4, 7, 8), (2, 3, 6, 7)


def decode_image(
    content: tf.Tensor,
    image_size: tuple[int, int],
    *,
    crop: tf.Tensor | None = None,
    background: tuple[int, int, int] = WHITE,
    enlarge: bool = False,
) -> tf.Tensor:
    """Decodes an image file and resizes the image.

    Args:
        content: string[]: the file's bytes.
        image_size: (H, W).
        crop: float64[3], see `random_crops`; None is the largest centred box.
        background: RGB of the page that shows through transparent pixels.
        enlarge: Whether an image smaller than `image_size` is enlarged; else it is an error.

    Returns:
        uint8[H,W,3].

    Raises:
        tf.errors.InvalidArgumentError: When the graph runs: the file is of another kind, damaged,
            too large or too small. The message states which.

    Example:
        pixels = decode_image(tf.io.read_file("photo.jpg"), (32, 32))
    """
    function = _decoder(tuple(image_size), crop is not None, tuple(background), enlarge)
    return function(content) if crop is None else function(content, crop)


def decode_images(
    contents: tf.Tensor, image_size: tuple[int, int], crops: tf.Tensor | None = None, **options
) -> tf.Tensor:
    """uint8[B,H,W,3] of the image files string[B], one after the other to bound the memory.

    Args:
        contents: string[B].
        image_size: (H, W).
        crops: float64[B,3] or None, see `decode_image`.
        **options: `background` and `enlarge` of `decode_image`.
    """
    return _map(lambda content: content, contents, image_size, crops, options)


def decode_files(
    paths: tf.Tensor, image_size: tuple[int, int], crops: tf.Tensor | None = None, **options
) -> tf.Tensor:
    """As `decode_images`, of the files at `paths` string[B]."""
    return _map(tf.io.read_file, paths, image_size, crops, options)


def _map(read, values, image_size, crops, options) -> tf.Tensor:
    def decode(value):
        value, crop = (value, None) if crops is None else value
        return decode_image(read(value), image_size, crop=crop, **options)

    return tf.map_fn(
        tf.autograph.experimental.do_not_convert(decode),
        values if crops is None else (values, crops),
        fn_output_signature=tf.TensorSpec([*image_size, 3], tf.uint8),
        parallel_iterations=1,
    )


def random_crops(uniform: tf.Tensor) -> tf.Tensor:
    """Crops by the paper's recipe, for `decode_image`.

    The box is cut before the one resize, which is the recipe's resize, crop and resize at once.

    Args:
        uniform: float64[B,3] in [0, 1).

    Returns:
        float64[B,3]: the side of the crop as a fraction of the largest box's, 224 / U{256..384},
        and the position of the crop, from 0 (top, left) to 1.

    Source: paper, section 3.1 (shorter side random in [256, 384], random 224 crop).
    """
    low, high = _SHORTER_SIDE
    sides = low + tf.floor(uniform[:, :1] * (high - low + 1))
    return tf.concat([_CROP / sides, uniform[:, 1:]], axis=1)


def load_images(paths: Sequence[str], image_size: tuple[int, int], **options) -> np.ndarray:
    """Reads image files; shows a progress bar after two seconds.

    Args:
        paths: The files.
        image_size: (H, W).
        **options: `background` and `enlarge` of `decode_image`.

    Returns:
        uint8[N,H,W,3].

    Raises:
        InputError: Names the first file that cannot be read, with the reason. Or `image_size` is
            wrong, or `paths` is a single path.

    Example:
        images = load_images(["a.png", "b.jpg"], (32, 32))
    """
    image_size = size_pair(image_size)
    if isinstance(paths, str | bytes | os.PathLike):
        raise InputError(f"paths is a list of files; put this one into a list. Received: {paths=}")
    images = np.empty((len(paths), *image_size, 3), "uint8")
    if not len(paths):
        return images

    def decode(path):
        return decode_image(tf.io.read_file(path), image_size, **options)

    with tf.init_scope():
        names = tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in paths])
        decoded = names.map(
            tf.autograph.experimental.do_not_convert(decode),
            num_parallel_calls=min(os.cpu_count() or 1, _MAX_PARALLEL),
            deterministic=True,
        )
        decoded = decoded.as_numpy_iterator()
        for number, path in enumerate(
            tqdm(paths, desc="decoding images", unit="file", delay=2, leave=False)
        ):
            try:
                images[number] = next(decoded)
            except tf.errors.OpError as error:
                raise refusal(error, os.fspath(path)) from None
    return images


def decode_bytes(
    content: bytes, image_size: tuple[int, int], *, name: str = "upload", **options
) -> np.ndarray:
    """uint8[H,W,3] of one image file in memory. Raises: InputError, which names the file `name`."""
    try:
        return decode_image(content, image_size, **options).numpy()
    except tf.errors.OpError as error:
        raise refusal(error, name, content) from None


def upright_size(content: tf.Tensor) -> tf.Tensor:
    """int32[2]: (height, width) at which the image in a file string[] is shown; not decoded.

    Also for graphs of `tf.compat.v1`, where `==` compares objects: it uses `tf.equal` throughout.
    """
    content, kind, head = _identify(content)
    size = _stored_size(content, kind, head)
    return tf.where(_is_one_of(_orientation(content, kind, head), _TRANSPOSED), size[::-1], size)


def size_pair(image_size) -> tuple[int, int]:
    """(H, W) from an int or a pair. Raises: InputError."""
    is_pair = isinstance(image_size, list | tuple)
    pair = tuple(image_size) if is_pair else (image_size, image_size)
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise InputError(
            "image_size must be a positive integer or a pair (height, width). "
            f"Received: image_size={image_size!r}"
        )
    return pair


def file_kind(head: bytes) -> str:
    """What a file is, by its first 64 bytes, for errors: "JPEG", "a web page or an SVG drawing"."""
    padded = head[:_HEAD].ljust(_HEAD, b"\0")
    kinds = (kind for kind, at, text in _SIGNATURES if padded.startswith(text, at))
    return next(kinds) if head else "empty"


@functools.lru_cache(maxsize=32)
def _decoder(image_size, has_crop: bool, background, enlarge: bool):
    """A `tf.function` of `decode_image`: tracing it takes a second or two, so it is kept."""
    specs = [tf.TensorSpec([], tf.string), tf.TensorSpec([3], tf.float64)][: 1 + has_crop]

    def decode(content, crop=None):
        return _decode_image(content, image_size, crop, background, enlarge)

    return tf.function(decode, input_signature=specs, autograph=False)


def _decode_image(content, image_size, crop, background, enlarge) -> tf.Tensor:
    with tf.device("CPU:0"):
        content, kind, head = _identify(content)
        stored_size = _stored_size(content, kind, head)
        orientation = _orientation(content, kind, head)
        is_transposed = _is_one_of(orientation, _TRANSPOSED)
        upright_size = tf.where(is_transposed, stored_size[::-1], stored_size)
        with tf.control_dependencies(_size_checks(upright_size, image_size, enlarge)):
            content = tf.identity(content)
        image = _decode(content, kind, head, stored_size, image_size, background)

        def resize():
            return _resize(image, orientation, is_transposed, image_size, crop, background)

        def is_opaque():
            return tf.reduce_all(image[..., 3:] == 255)

        # Images that are stored as they are wanted need nothing else.
        is_exact = (orientation == 1) & tf.reduce_all(tf.shape(image)[:2] == image_size)
        is_done = tf.cond(is_exact & (crop is None), is_opaque, lambda: tf.constant(False))
        pixels = tf.cond(is_done, lambda: image[..., :3], lambda: _call(resize))
        return tf.ensure_shape(pixels, [*image_size, 3])


def refusal(error: tf.errors.OpError, name: str, content: bytes | None = None) -> InputError:
    """What `decode_image` found wrong, with the file's name."""
    if isinstance(error, tf.errors.ResourceExhaustedError):
        raise error
    message = " ".join(error.message.split())
    if "assertion failed: [" in message:
        problem = message.split("assertion failed: [", 1)[1].split("]", 1)[0]
    else:
        try:
            with open(name, "rb") if content is None else io.BytesIO(content) as file:
                kind = file_kind(file.read(_HEAD))
        except OSError as unreadable:
            problem = f"an image file cannot be read ({unreadable.strerror}); restore or remove it"
        else:
            problem = f"a {kind} file is damaged or incomplete; restore or remove it"
    return InputError(f"{problem}. Received: file={name}")


def _call(function: Callable[[], tf.Tensor]) -> tf.Tensor:
    """Calls `function` as one operation of the graph.

    The executor visits every operation of a branch, also of one that is not taken. Branches that
    are rarely taken are called in this way, and so count as one operation.
    """
    attributes = {"_noinline": True}
    return tf.function(function, autograph=False, experimental_attributes=attributes)()


# --- What the file is ---


def _identify(content: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(content, kind int32[], head uint8[64]); an error unless the file can be decoded."""
    length = tf.strings.length(content)
    padded = tf.strings.join([tf.strings.substr(content, 0, _HEAD), bytes(_HEAD)])
    head = tf.ensure_shape(tf.io.decode_raw(tf.strings.substr(padded, 0, _HEAD), tf.uint8), [_HEAD])
    mask, values = np.zeros((2, len(_SIGNATURES), _HEAD), "uint8")
    for row, (_, start, signature) in enumerate(_SIGNATURES):
        mask[row, start : start + len(signature)] = 255
        values[row, start : start + len(signature)] = list(signature)
    matches = tf.reduce_all(tf.equal(tf.bitwise.bitwise_and(head, mask), values), axis=1)
    kind = tf.argmax(matches, output_type=tf.int32)
    found = tf.gather([name for name, _, _ in _SIGNATURES], kind)
    found = tf.where(tf.equal(length, 0), "empty", found)
    checks = [
        tf.Assert(
            (kind < len(_DECODED)) & (length > 0),
            [
                tf.strings.join(
                    ["an image file is ", found, "; PNG, JPEG, WebP, BMP and GIF can be read"]
                )
            ],
        ),
        tf.Assert(
            length <= MAX_FILE_BYTES,
            [
                tf.strings.join(
                    ["an image file has ", tf.strings.as_string(length),
                     f" bytes, more than {MAX_FILE_BYTES}; compress it"]
                )
            ],
        ),
    ]  # fmt: skip
    with tf.control_dependencies(checks):
        return tf.identity(content), tf.minimum(kind, len(_DECODED) - 1), tf.identity(head)


def _stored_size(content, kind, head) -> tf.Tensor:
    """int32[2]: (height, width) that the file's header announces."""

    def webp():
        chunk = tf.cast(head[15], tf.int32)  # "VP8X", "VP8L" or "VP8 "
        extended = 1 + tf.stack([_little(head[27:30]), _little(head[24:27])])
        bits = _little(head[21:25])
        lossless = 1 + tf.stack([bits // 2**14, bits]) % 2**14
        lossy = tf.stack([_little(head[28:30]), _little(head[26:28])]) % 2**14
        return tf.where(
            tf.equal(chunk, ord("X")),
            extended,
            tf.where(tf.equal(chunk, ord("L")), lossless, lossy),
        )

    def bmp():
        return tf.abs(tf.stack([_little(head[22:26]), _little(head[18:22])]))

    return tf.switch_case(
        kind,
        {
            _JPEG: lambda: tf.io.extract_jpeg_shape(content)[:2],
            _PNG: lambda: tf.stack([_big(head[20:24]), _big(head[16:20])]),
            _WEBP: webp,
            _GIF: lambda: tf.stack([_little(head[8:10]), _little(head[6:8])]),
            _BMP: bmp,
        },
    )


def _size_checks(size, image_size, enlarge) -> list:
    """Assertions on an image's upright (height, width) int32[2], before it is decoded."""
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    shown = tf.strings.reduce_join(tf.strings.as_string(size), separator="x")
    large = tf.strings.join(
        ["an image of ", shown, f" pixels has more than {MAX_FILE_PIXELS}; shrink it"]
    )
    empty = "an image file is damaged or incomplete; its header announces no pixels"
    checks = [
        tf.Assert(tf.reduce_all(size > 0), [empty]),
        tf.Assert(pixels <= MAX_FILE_PIXELS, [large]),
    ]
    if not enlarge:
        small = tf.strings.join(
            [
                "an image of ",
                shown,
                " pixels is smaller than image_size {}x{}; replace or remove it, or train with a "
                "smaller image_size".format(*image_size),
            ]
        )
        checks.append(tf.Assert(tf.reduce_all(size >= tf.constant(image_size)), [small]))
    return checks


# --- Pixels ---


def _decode(content, kind, head, size, image_size, background) -> tf.Tensor:
    """uint8[h,w,C], C = 3, or 4 with the opacity; a JPEG perhaps at a fraction of its size."""

    def jpeg():
        spare = tf.reduce_min(size) // (_DRAFT * max(image_size))
        halvings = tf.reduce_sum(tf.cast(spare >= [2, 4, 8], tf.int32))

        def at(ratio):
            return lambda: tf.io.decode_jpeg(
                content, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
            )

        return tf.switch_case(halvings, [at(ratio) for ratio in (1, 2, 4, 8)])

    def png():
        start = tf.strings.substr(content, 0, _EXIF_BYTES)
        has_opacity = _is_one_of(head[25], (4, 6)) | (tf.size(_split(start, b"tRNS")) > 1)
        # TensorFlow 2.21 decodes images of 1 to 4 bits without opacity wrongly to four channels.
        return tf.cond(
            has_opacity,
            lambda: tf.io.decode_png(content, channels=4),
            lambda: tf.io.decode_png(content, channels=3),
        )

    def webp():
        # TensorFlow 2.21 writes beyond its memory when it decodes an animation without alpha.
        is_animated = (head[15] == ord("X")) & (tf.bitwise.bitwise_and(head[20], 2) > 0)
        text = "an image file is an animated WebP; save one frame of it"
        with tf.control_dependencies([tf.Assert(~is_animated, [text])]):
            return tf.io.decode_webp(tf.identity(content), channels=0)[0]

    def gif():
        shown = _with_transparent_as(background, content)
        image = tf.io.decode_image(shown, channels=3, expand_animations=False)
        return tf.ensure_shape(image, [None, None, 3])

    branches = {
        _JPEG: jpeg,
        _PNG: png,
        _WEBP: lambda: _call(webp),
        _GIF: lambda: _call(gif),
        _BMP: lambda: _call(lambda: _decode_bmp(content, head)),
    }
    image = tf.switch_case(kind, branches)
    return tf.ensure_shape(image, [None, None, None])


def _with_transparent_as(background, content) -> tf.Tensor:
    """The GIF file string[] with the transparent colour of its first frame replaced.

    TensorFlow shows transparent pixels as black and does not return which they are, so their entry
    in the colour table is overwritten, and the flag that makes them transparent is cleared.
    """
    data = tf.io.decode_raw(tf.strings.substr(content, 0, _EXIF_BYTES), tf.uint8)
    size = tf.size(data)
    data = tf.cast(tf.pad(data, [[0, 20]]), tf.int32)
    table_entries = tf.where(data[10] >= 0x80, 2 ** (data[10] % 8 + 1), 0)

    # Steps over the other extensions in front of the first frame, block by block.
    def is_other(at, is_inside):
        is_extension = (data[at] == ord("!")) & (data[at + 1] != 0xF9)
        return (at < size) & (is_inside | is_extension)

    def step(at, is_inside):
        following = tf.where(is_inside, at + 1 + data[at], at + 2)
        return tf.minimum(following, size), ~is_inside | (data[at] > 0)

    start, _ = tf.while_loop(is_other, step, (13 + 3 * table_entries, tf.constant(False)))
    start = tf.minimum(start, size)
    control = data[start : start + 20]  # 8 bytes, and those of the frame behind it
    is_transparent = (control[0] == ord("!")) & (control[1] == 0xF9) & (control[3] % 2 == 1)
    own_table, index = control[17] >= 0x80, control[6]

    def replaced():
        entry = 3 * index + tf.where(own_table, start + 18, 13)
        opaque = _overwrite(content, start + 3, b"\0")
        return _overwrite(opaque, entry, bytes(background))

    return tf.cond(is_transparent, replaced, lambda: content)


def _overwrite(text: tf.Tensor, start: tf.Tensor, new: bytes) -> tf.Tensor:
    """string[] with the bytes from `start` on replaced; unchanged where it is too short."""

    def overwrite():
        end = tf.strings.substr(text, start + len(new), MAX_FILE_BYTES)
        return tf.strings.join([tf.strings.substr(text, 0, start), new, end])

    return tf.cond(start + len(new) <= tf.strings.length(text), overwrite, lambda: text)


def _decode_bmp(content, head) -> tf.Tensor:
    """uint8[h,w,3]."""
    header_size, bits, compression = (
        _little(head[14:18]), _little(head[28:30]), _little(head[30:34])
    )  # fmt: skip
    is_supported = (header_size >= 40) & (compression == 0) & _is_one_of(bits, (8, 24, 32))
    text = "an image file is a BMP of a rare kind (not 8, 24 or 32 bits uncompressed)"
    with tf.control_dependencies([tf.Assert(is_supported, [text + "; convert it to PNG"])]):
        image = tf.io.decode_bmp(tf.identity(content), channels=0)

    def palette_colours():
        start = 14 + header_size
        size = tf.clip_by_value(_little(head[10:14]) - start, 0, 4 * 256) // 4 * 4
        table = tf.io.decode_raw(tf.strings.substr(content, start, size), tf.uint8)
        table = tf.reshape(table, [-1, 4])[:, 2::-1]  # blue, green, red, unused
        return tf.gather(table, tf.cast(image[..., 0], tf.int32))

    image = tf.cond(bits == 8, palette_colours, lambda: image[..., :3])
    return tf.ensure_shape(image, [None, None, 3])


def _box(size, image_size, crop) -> tuple[tf.Tensor, tf.Tensor]:
    """(top and left float64[2], height and width float64[2]) of the part that is shown."""
    wanted = tf.constant(image_size, tf.float64)
    largest = wanted * tf.reduce_min(size / wanted)
    if crop is None:
        return (size - largest) / 2, largest
    sides = tf.maximum(tf.round(largest * crop[0]), 1)
    return tf.round((size - sides) * crop[1:]), sides


def _resize(image, orientation, is_transposed, image_size, crop, background) -> tf.Tensor:
    """uint8[H,W,3]: the box of an image that is shown, upright."""
    stored_size = tf.cast(tf.shape(image)[:2], tf.float64)
    size = tf.where(is_transposed, stored_size[::-1], stored_size)
    corner, sides = _box(size, image_size, crop)
    # The result is turned, which is small, instead of the image; here the box is turned back.
    is_reversed = [
        _is_one_of(orientation, _ROWS_REVERSED),
        _is_one_of(orientation, _COLUMNS_REVERSED),
    ]
    corner = tf.where(is_reversed, size - corner - sides, corner)
    box = tf.stack([corner, sides, tf.constant(image_size, tf.float64)])
    corner, sides, wanted = tf.unstack(tf.where(is_transposed, box[:, ::-1], box))
    resized = _area_resize(image, corner, sides, tf.cast(wanted, tf.int32), background)

    def applied(resized, is_asked, change):
        return tf.cond(is_asked, lambda: change(resized), lambda: resized)

    resized = applied(resized, is_transposed, lambda resized: tf.transpose(resized, [1, 0, 2]))
    resized = applied(resized, is_reversed[0], lambda resized: resized[::-1])
    return applied(resized, is_reversed[1], lambda resized: resized[:, ::-1])


def _area_resize(image, corner, sides, wanted, background) -> tf.Tensor:
    """Resizes a box of an image; each new pixel is the mean over its area.

    Works in bands of about `_BAND` pixels or one new row: no large image is held as floats.

    Args:
        image: uint8[h,w,C], C = 3, or 4 with the opacity.
        corner, sides: float64[2], see `_box`.
        wanted: int32[2]: the new height and width.
        background: RGB shown through transparent pixels.

    Returns:
        uint8[*wanted,3].
    """
    stretch = sides / tf.cast(wanted, tf.float64)
    columns, left, right = _overlaps(corner[1], stretch[1], wanted[1], tf.shape(image)[1])

    def resize_rows(start, stop):
        """uint8[stop-start,W,3]: some rows of the result."""
        top = corner[0] + stretch[0] * tf.cast(start, tf.float64)
        rows, upper, lower = _overlaps(top, stretch[0], stop - start, tf.shape(image)[0])
        # float32 holds these sums exactly where the overlaps are multiples of 1/32.
        pixels = tf.cast(_opaque(image[upper:lower, left:right], background), tf.float32)
        sums = tf.matmul(tf.cast(rows, tf.float32), tf.reshape(pixels, [lower - upper, -1]))
        sums = tf.cast(tf.reshape(sums, [stop - start, right - left, 3]), tf.float64)
        means = tf.einsum("bw,awc->abc", columns, sums) / (stretch[0] * stretch[1])
        return tf.cast(tf.round(means), tf.uint8)

    def resize_bands():
        def resize_band(band, resized):
            start, stop = band * wanted[0] // num_bands, (band + 1) * wanted[0] // num_bands
            return band + 1, resized.write(band, resize_rows(start, stop))

        resized = tf.TensorArray(
            tf.uint8, num_bands, infer_shape=False, element_shape=[None, None, 3]
        )
        _, resized = tf.while_loop(
            lambda band, _: band < num_bands, resize_band, (0, resized), parallel_iterations=1
        )
        return resized.concat()

    num_bands = tf.cast(sides[0] * sides[1] / _BAND, tf.int32)
    num_bands = tf.clip_by_value(num_bands, 1, wanted[0])
    return tf.cond(num_bands == 1, lambda: resize_rows(0, wanted[0]), lambda: _call(resize_bands))


def _overlaps(start, stretch, count, size) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """How much of each old pixel of one axis is inside each new one.

    Args:
        start, stretch: float64[]: the new pixels are `stretch` old ones long, one after the other
            from `start`.
        count, size: int32[]: numbers of new and of old pixels.

    Returns:
        (overlaps float64[count,last-first], first int32[], last int32[]): of the old pixels from
        `first` to `last`; no other one lies in a new one.
    """
    starts = start + stretch * tf.range(tf.cast(count, tf.float64), dtype=tf.float64)
    stops = starts + stretch
    first = tf.maximum(tf.cast(tf.floor(starts[0]), tf.int32), 0)
    last = tf.minimum(tf.cast(tf.math.ceil(stops[-1]), tf.int32), size)
    old = tf.cast(tf.range(first, last), tf.float64)
    overlaps = tf.minimum(old + 1, stops[:, None]) - tf.maximum(old, starts[:, None])
    return tf.maximum(overlaps, 0), first, last


def _opaque(pixels, background) -> tf.Tensor:
    """uint8[h,w,3] of uint8[h,w,C]: composited on the background where there is an opacity."""

    def composite():
        opacity = tf.cast(pixels[..., -1:], tf.int32)
        colour = tf.cast(pixels[..., :3], tf.int32)
        mixed = colour * opacity + tf.constant(background) * (255 - opacity)
        return tf.cast((mixed + 127) // 255, tf.uint8)

    is_opaque = tf.reduce_all(pixels[..., 3:] == 255)  # true of three channels
    return tf.cond(is_opaque, lambda: pixels[..., :3], composite)


# --- Orientation. Source: EXIF 2.32, section 4.6.4; TIFF 6.0, section 2 (the table of tags) ---


def _orientation(content, kind, head) -> tf.Tensor:
    """int32[]: the EXIF orientation, 1 to 8; 1, upright, without EXIF or where it is damaged."""
    start = tf.strings.substr(content, 0, _EXIF_BYTES)

    def if_named(name, text, parse):
        # Searching for the name spares most files the many small operations of the parser.
        parts = _split(text, name)
        return tf.cond(
            tf.size(parts) > 1,
            lambda: _call(lambda: parse(parts[1])),
            lambda: tf.constant(1),
        )

    def webp_tiff(chunk):
        tiff = tf.strings.substr(tf.strings.join([chunk, bytes(10)]), 4, _TIFF_BYTES)  # no length
        is_named = tf.equal(tf.strings.substr(tiff, 0, 6), b"Exif\0\0")
        return tf.where(is_named, tf.strings.substr(tiff, 6, _TIFF_BYTES), tiff)

    def webp():
        has_exif = tf.equal(head[15], ord("X")) & (tf.bitwise.bitwise_and(head[20], 8) > 0)
        text = tf.where(has_exif, content, b"")
        return if_named(b"EXIF", text, lambda chunk: _tiff_orientation(webp_tiff(chunk)))

    return tf.switch_case(
        kind,
        {
            _JPEG: lambda: if_named(
                b"Exif\0\0", start, lambda _: _tiff_orientation(_jpeg_exif(start))
            ),
            _PNG: lambda: if_named(b"eXIf", start, _tiff_orientation),
            _WEBP: lambda: _call(webp),
            _GIF: lambda: tf.constant(1),
            _BMP: lambda: tf.constant(1),
        },
    )


def _jpeg_exif(content) -> tf.Tensor:
    """string[]: what the first EXIF segment of a JPEG file holds; empty without one."""
    data = tf.reshape(tf.io.decode_raw(content, tf.uint8), [-1])  # a known rank
    size = tf.size(data)
    data = tf.pad(data, [[0, 10]])  # a segment's marker, its length and the name
    exif = tf.constant(list(b"\xff\xe1Exif\0\0"), tf.uint8)

    def is_exif(at):
        return tf.reduce_all(
            tf.equal(tf.concat([data[at : at + 2], data[at + 4 : at + 10]], 0), exif)
        )

    def end(at):
        return tf.minimum(at + 2 + _big(tf.slice(data, [at + 2], [2])), size)

    def is_before_exif(at):
        is_segment = tf.equal(data[at], 0xFF) & tf.not_equal(
            data[at + 1], 0xDA
        )  # 0xDA: the image data follow
        return (at + 1 < size) & is_segment & ~is_exif(at)

    def following(at):
        return [tf.where(tf.equal(data[at + 1], 0xFF), at + 1, end(at))]  # 0xFF, 0xFF: a fill byte

    [at] = tf.while_loop(is_before_exif, following, [tf.constant(2)])
    found = (at + 1 < size) & is_exif(at)
    length = tf.where(found, tf.maximum(end(at) - at - 10, 0), 0)
    return tf.strings.substr(content, tf.where(found, tf.minimum(at + 10, size), 0), length)


def _tiff_orientation(tiff) -> tf.Tensor:
    """int32[]: the tag Orientation in a TIFF header string[]; 1 if it is not there or damaged."""
    data = tf.io.decode_raw(tf.strings.substr(tiff, 0, _TIFF_BYTES), tf.uint8)
    data = tf.reshape(data, [-1])  # a known rank
    size = tf.size(data)
    data = tf.pad(data, [[0, 12]])  # an entry: tag, type, count and value
    is_big = tf.equal(data[0], ord("M"))

    def number(digits):
        return tf.where(is_big, _big(digits), _little(digits))

    table = number(tf.slice(data, [4], [4]))
    table = 2 + tf.where(table < 0, size, tf.minimum(table, size))
    count = number(tf.slice(data, [table - 2], [2]))
    is_tiff = tf.equal(data[0], data[1]) & (is_big | tf.equal(data[0], ord("I")))
    count = tf.where(is_tiff & (table + 12 * count <= size), count, 0)
    entries = tf.reshape(data[table : table + 12 * count], [-1, 12])
    is_short = tf.equal(number(entries[:, :2]), 0x0112) & tf.equal(number(entries[:, 2:4]), 3)
    values = tf.boolean_mask(number(entries[:, 8:10]), is_short)
    first = tf.concat([values, [1]], axis=0)[0]
    return tf.where((first >= 1) & (first <= 8), first, 1)


def _split(text, separator: bytes) -> tf.Tensor:
    """string[1 or 2]: the text before and after the first separator; the text, if there is none."""
    # One operation; `tf.strings.split` adds those of a RaggedTensor.
    return tf.raw_ops.StringSplitV2(input=[text], sep=separator, maxsplit=1).values


def _is_one_of(value, values) -> tf.Tensor:
    return tf.reduce_any(tf.equal(value, values))


def _big(digits) -> tf.Tensor:
    """int32[...] of bytes uint8[...,n], the most significant first; wraps around at 2**31."""
    places = [8 * place for place in reversed(range(digits.shape[-1]))]
    return tf.reduce_sum(tf.bitwise.left_shift(tf.cast(digits, tf.int32), places), axis=-1)


def _little(digits) -> tf.Tensor:
    """As `_big`, the least significant first."""
    return _big(digits[..., ::-1])
