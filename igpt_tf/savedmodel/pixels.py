"""Between what a request carries, pixels or files, and tokens."""

import tensorflow as tf

from igpt_tf.sampling.params import MAX_FILE_BYTES, MAX_FILE_PIXELS

_PNG = b"\x89PNG\r\n\x1a\n"


def encode(palette, images):
    """uint8[B,H,W,3] -> tokens int32[B,T], image by image to bound the memory of distances."""
    length = images.shape[1] * images.shape[2]
    return tf.map_fn(
        lambda image: palette.encode_tensor(image[None])[0],
        images,
        fn_output_signature=tf.TensorSpec([length], tf.int32),
    )


def decode(palette, tokens, image_size):
    """Tokens int32[B,T] -> uint8[B,H,W,3]."""
    size = len(palette)
    inside = tf.reduce_all((tokens >= 0) & (tokens < size))
    with tf.control_dependencies([tf.Assert(inside, [f"tokens must be 0 to {size - 1}"])]):
        return palette.decode_tensor(tf.identity(tokens), image_size)


def read_files(image_bytes, image_size):
    """PNG or JPEG files string[B] of any size -> uint8[B,H,W,3]."""
    return tf.map_fn(
        lambda content: _read_file(content, image_size),
        image_bytes,
        fn_output_signature=tf.TensorSpec([*image_size, 3], tf.uint8),
    )


def _read_file(content, image_size):
    length = tf.strings.length(content)
    fits = tf.Assert(
        (length > 0) & (length <= MAX_FILE_BYTES),
        [f"an image file must have 1 to {MAX_FILE_BYTES} bytes. Received: bytes=", length],
    )
    with tf.control_dependencies([fits]):
        height, width = _size_in_header(tf.identity(content))
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    small = (pixels > 0) & (pixels <= MAX_FILE_PIXELS)
    # Before decoding: a small file can hold an image that fills the memory.
    fits = tf.Assert(
        small, [f"an image must have 1 to {MAX_FILE_PIXELS} pixels. Received: pixels=", pixels]
    )
    with tf.control_dependencies([fits]):
        image = tf.io.decode_image(tf.identity(content), channels=3, expand_animations=False)
    return fit(image, image_size)


def _size_in_header(content):
    """(height, width) that a PNG or JPEG file promises."""
    png = tf.equal(tf.strings.substr(content, 0, len(_PNG)), _PNG)
    jpeg = tf.equal(tf.strings.substr(content, 0, 2), b"\xff\xd8")
    with tf.control_dependencies([tf.Assert(png | jpeg, ["an image must be a PNG or JPEG file"])]):
        content = tf.identity(content)
    shape = tf.cond(png, lambda: _png_shape(content), lambda: tf.image.extract_jpeg_shape(content))
    return shape[0], shape[1]


def _png_shape(content):
    """int32[3] from the header chunk, which PNG puts first: width and height, big-endian."""
    with tf.control_dependencies(
        [tf.Assert(tf.strings.length(content) >= 24, ["a PNG file is cut short"])]
    ):
        sides = tf.strings.substr(content, 16, 8)
    width, height = tf.unstack(tf.io.decode_raw(sides, tf.int32, little_endian=False), num=2)
    return tf.stack([height, width, 3])


def fit(image, image_size):
    """The largest centred box of those proportions, each new pixel the mean over its area.

    What `igpt_tf.data` does to image files, in the graph; cameras' EXIF turns are not followed.

    Args:
        image: uint8[h,w,3].
        image_size: (H, W).

    Returns:
        uint8[H,W,3].
    """
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    stretch = tf.reduce_min(size / tf.constant(image_size, tf.float32))
    rows, columns = (_shares(size[axis], image_size[axis], stretch) for axis in (0, 1))
    means = tf.einsum("ah,hwc->awc", rows, tf.cast(image, tf.float32))
    means = tf.einsum("bw,awc->abc", columns, means)
    return tf.ensure_shape(tf.cast(tf.round(means), tf.uint8), [*image_size, 3])


def _shares(size, wanted: int, stretch):
    """float32[wanted,size]: each old row's share in each new one, `stretch` old rows wide."""
    starts = (size - wanted * stretch) / 2 + stretch * tf.range(wanted, dtype=tf.float32)
    old = tf.range(size)
    starts = starts[:, None]
    overlap = tf.minimum(old + 1, starts + stretch) - tf.maximum(old, starts)
    return tf.maximum(overlap, 0) / stretch
