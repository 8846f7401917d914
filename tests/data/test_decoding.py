"""Decoding: each file gives what a viewer shows, the same pixels everywhere, or one clear error."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from igpt_tf.data import FileExamples, decoding, load_images
from igpt_tf.data.decoding import decode_bytes
from igpt_tf.errors import InputError

HEIGHT, WIDTH = 24, 18
ORIENTATION = 0x0112
SIDEWAYS = 6  # turn by 90 degrees clockwise to view


def smooth(height=HEIGHT, width=WIDTH, seed=0):
    """uint8[h,w,3] without symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype="uint8")
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def stored(image, kind, **options):
    """The bytes of an image file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def jpeg(pixels, orientation, byte_order="<", **options):
    """A JPEG file with this orientation in EXIF; without EXIF for None."""
    options = {"quality": 95, "subsampling": 0, **options}
    if orientation is not None:
        exif = Image.Exif()
        exif.endian = byte_order
        exif[0x010F] = "a maker, so that the tag is not the first"
        exif[ORIENTATION] = orientation
        options["exif"] = exif.tobytes()
    return stored(pixels, "JPEG", **options)


def png(height, width, bits, colour_type, rows, interlaced=False):
    """A PNG file of packed rows; Pillow writes neither interlaced nor 4-bit grey ones."""

    def chunk(name, body):
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def interlaced_png(pixels):
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
              (1, 0, 2, 1)]  # fmt: skip
    rows = [row for top, left, down, right in passes for row in pixels[top::down, left::right]]
    return png(*pixels.shape[:2], 8, 2, rows, interlaced=True)


def palette_image():
    """(a palette image with a transparent colour, what it looks like on white)."""
    indices = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype("uint8") % 5
    colours = np.array([[200, 0, 0], [0, 180, 0], [0, 0, 220], [9, 9, 9], [70, 80, 90]], "uint8")
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    colours[2] = 255
    return image, colours[indices]


def translucent(opacity, colour=None):
    """(uint8[h,w,4], what it looks like on white)."""
    colour = smooth() if colour is None else colour
    pixels = np.dstack([colour, np.broadcast_to(opacity, colour.shape[:2]).astype("uint8")])
    share = pixels[..., 3:] / 255
    return pixels, np.rint(colour * share + 255 * (1 - share))


def variants():
    """{name: (content of the file, what a viewer shows, largest difference)}."""
    picture, deep = smooth(), smooth().astype("uint16") * 257
    grey = picture[..., 0]
    grey3 = np.repeat(grey[..., None], 3, axis=-1)
    noise = np.random.default_rng(1).integers(0, 256, picture.shape, dtype="uint8")
    ramp = np.tile(np.linspace(0, 255, WIDTH), (HEIGHT, 1))
    four_bits = grey[:, ::2] // 16 * 16 + grey[:, 1::2] // 16
    indexed, indexed_shown = palette_image()
    indexed_plain = np.asarray(indexed.convert("RGB"))
    cmyk = Image.fromarray(picture).convert("CMYK")
    files = {
        "plain.png": (stored(picture, "PNG"), picture, 0),
        "interlaced.png": (interlaced_png(picture), picture, 0),
        "grey.png": (stored(grey, "PNG"), grey3, 0),
        "grey4.png": (png(HEIGHT, WIDTH, 4, 0, four_bits), grey3 // 16 * 17, 0),
        "grey16.png": (stored(Image.fromarray(deep[..., 0]), "PNG"), grey3, 0),
        "palette.png": (stored(indexed, "PNG"), indexed_plain, 0),
        "palette_transparent.png": (stored(indexed, "PNG", transparency=2), indexed_shown, 0),
        "text.png": (stored(picture, "PNG", pnginfo=_large_text()), picture, 0),
        "grey.jpg": (stored(grey, "JPEG", quality=98), grey3, 8),
        "progressive.jpg": (jpeg(picture, None, progressive=True), picture, 16),
        "cmyk.jpg": (stored(cmyk, "JPEG", quality=98), picture, 16),
        "jpeg_named.png": (jpeg(picture, None), picture, 16),
        "lossless.webp": (stored(picture, "WEBP", lossless=True), picture, 0),
        "lossy.webp": (stored(picture, "WEBP", quality=100), picture, 40),
        "rgb.bmp": (stored(picture, "BMP"), picture, 0),
        "grey.bmp": (stored(grey, "BMP"), grey3, 0),
        "palette.bmp": (stored(indexed, "BMP"), indexed_plain, 0),
        "alpha.bmp": (stored(translucent(255)[0], "BMP"), picture, 0),
        "palette.gif": (stored(indexed, "GIF"), indexed_plain, 0),
        "palette_transparent.gif": (stored(indexed, "GIF", transparency=2), indexed_shown, 0),
        "animated.gif": (
            stored(indexed, "GIF", save_all=True, append_images=[Image.new("P", (WIDTH, HEIGHT))]),
            indexed_plain,
            0,
        ),
    }
    for name, (pixels, shown) in {
        "black_under": translucent(0, np.zeros_like(picture)),
        "noise_under": translucent(0, noise),
        "half": translucent(128),
        "ramp": translucent(ramp),
    }.items():
        files[f"{name}.png"] = (stored(pixels, "PNG"), shown, 1)
        lossless = stored(pixels, "WEBP", lossless=True, exact=True)
        files[f"{name}.webp"] = (lossless, shown, 1)
    for orientation in range(1, 9):
        for name, order in (("little", "<"), ("big", ">")):
            content = jpeg(picture, orientation, order, comment=b"hello")
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
            files[f"{orientation}_{name}.jpg"] = (content, np.asarray(upright), 3)
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
            content = stored(picture, kind, exif=exif, **options)
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
            files[f"{orientation}.{kind.lower()}"] = (content, np.asarray(upright), 0)
    return files


def _large_text():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "large " * 500_000, zip=True)
    return info


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(folder of all variants, {name: (content, shown, difference)})."""
    directory, files = tmp_path_factory.mktemp("variants"), variants()
    for name, (content, _, _) in files.items():
        (directory / name).write_bytes(content)
    return directory, files


def in_pipeline(paths, image_size, **options):
    """uint8[N,H,W,3] as a training batch holds them."""
    examples = FileExamples(paths, None, image_size, **options)
    count = len(examples)
    load = tf.function(examples.load, autograph=False)
    return load(tf.range(count, dtype=tf.int64), tf.zeros([count, 2], tf.int32)).numpy()


def test_one_set_of_files_gives_the_same_pixels_everywhere(folder):
    directory, files = folder
    image_size = (9, 6)
    paths = [str(directory / name) for name in files]
    loaded = load_images(paths, image_size)
    np.testing.assert_array_equal(in_pipeline(paths, image_size), loaded)
    np.testing.assert_array_equal(in_pipeline(paths, image_size, in_memory=True), loaded)
    contents = [content for content, _, _ in files.values()]
    as_signature = tf.function(
        lambda contents: decoding.decode_images(contents, image_size),
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )
    np.testing.assert_array_equal(as_signature(tf.constant(contents)), loaded)
    for content, pixels in zip(contents, loaded, strict=True):
        np.testing.assert_array_equal(decode_bytes(content, image_size), pixels)


def test_a_file_is_shown_as_by_a_viewer_on_a_white_page(folder):
    for name, (content, shown, difference) in folder[1].items():
        pixels = decode_bytes(content, shown.shape[:2], name=name).astype(int)
        assert np.abs(pixels - shown).max() <= difference, name


def test_another_background_shows_through(folder):
    content = folder[1]["black_under.png"][0]
    assert (decode_bytes(content, (8, 8), background=(10, 20, 30)) == [10, 20, 30]).all()
    content, shown, _ = folder[1]["palette_transparent.gif"]
    pixels = decode_bytes(content, shown.shape[:2], background=(1, 2, 3))
    np.testing.assert_array_equal(pixels[(shown == 255).all(axis=-1)][0], [1, 2, 3])


def test_a_cmyk_jpeg_without_adobes_marker_is_not_inverted():
    cmyk = Image.fromarray(smooth()).convert("CMYK")
    inverted = Image.fromarray(255 - np.asarray(cmyk), "CMYK")
    content = stored(inverted, "JPEG", quality=98)
    at = content.index(b"\xff\xee")  # Adobe's marker: the values are inverted
    content = content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4], "big") :]
    assert b"Adobe" not in content
    assert np.abs(decode_bytes(content, (HEIGHT, WIDTH)).astype(int) - smooth()).max() <= 16


def test_a_damaged_exif_leaves_a_photograph_as_stored():
    photograph = smooth()
    whole = jpeg(photograph, SIDEWAYS)
    place = whole.index(b"Exif\0\0")
    upright, turned = (decode_bytes(jpeg(photograph, o), (6, 6)) for o in (1, SIDEWAYS))
    seen = set()
    for at in range(place - 1, place + 50):
        for byte in (0, 9, 255):
            content = whole[:at] + bytes([byte]) + whole[at + 1 :]
            try:
                pixels = decode_bytes(content, (6, 6))
            except InputError:
                continue  # the length of the segment was changed
            seen.add("turned" if np.array_equal(pixels, turned) else "other")
            if not np.array_equal(pixels, turned) and byte == 0:
                seen.add("upright" if np.array_equal(pixels, upright) else "other")
    assert {"turned", "upright"} <= seen
    comment = jpeg(photograph, None, comment=b"Exif\0\0 is only a word here")
    np.testing.assert_array_equal(decode_bytes(comment, (6, 6)), upright)


def test_the_size_that_counts_is_the_upright_one(tmp_path):
    path = tmp_path / "wide.jpg"
    path.write_bytes(jpeg(smooth(48, 32), SIDEWAYS))  # stored 48 x 32, seen 32 x 48
    for image_size in ((32, 48), (20, 40)):
        assert load_images([path], image_size).shape == (1, *image_size, 3)
    with pytest.raises(InputError, match="32x48 pixels is smaller than image_size 48x32"):
        load_images([path], (48, 32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="smaller than image_size"):
        in_pipeline([path], (48, 32))


def test_shrinking_takes_the_mean_over_the_area():
    image = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype="uint8")
    means = image.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(decode_bytes(stored(image, "PNG"), (16, 16)) - means).max() <= 0.5


def test_the_centre_of_a_wide_image_is_kept():
    image = np.zeros((16, 40, 3), "uint8")
    image[:, 12:28] = 200
    assert (decode_bytes(stored(image, "PNG"), (8, 8)) == 200).all()


@pytest.mark.parametrize("size", [(37, 50), (50, 37), (41, 41)])
def test_files_and_arrays_are_resized_alike(size):
    from igpt_tf.data.sources import resize_arrays

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype="uint8")
    for image_size in ((8, 8), (11, 7)):
        expected = resize_arrays(image[None], image_size)[0].astype(int)
        assert np.abs(decode_bytes(stored(image, "PNG"), image_size) - expected).max() <= 1


def test_resizing_in_bands_gives_the_same_pixels(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (70, 61, 4), dtype="uint8")
    content = stored(image, "PNG")
    whole = decode_bytes(content, (7, 9))
    decoding._decoder.cache_clear()
    monkeypatch.setattr(decoding, "_BAND", 500)
    bands = decode_bytes(content, (7, 9))
    decoding._decoder.cache_clear()
    np.testing.assert_array_equal(whole, bands)


def test_large_jpegs_decoded_at_a_fraction_look_like_the_whole_ones():
    image = smooth(640, 640)
    fast = decode_bytes(stored(image, "JPEG", quality=95), (32, 32)).astype(float)
    whole = image.astype(float).reshape(32, 20, 32, 20, 3).mean(axis=(1, 3))
    assert 10 * np.log10(255**2 / np.mean((fast - whole) ** 2)) > 38  # dB


def test_small_images_are_enlarged_on_request():
    content = stored(np.array([[[0, 0, 0], [200, 100, 50]]], "uint8").repeat(2, axis=0), "PNG")
    pixels = decode_bytes(content, (4, 4), enlarge=True)
    np.testing.assert_array_equal(pixels[:, :, 0], [[0, 0, 200, 200]] * 4)
    with pytest.raises(InputError, match="2x2 pixels is smaller than image_size 4x4"):
        decode_bytes(content, (4, 4))


def test_the_random_crop_follows_the_papers_recipe():
    uniform = np.random.RandomState(0).uniform(size=(2000, 3))
    crops = decoding.random_crops(tf.constant(uniform)).numpy()
    size = tf.constant([4000, 5120], tf.float64)
    boxes = [np.concatenate(decoding._box(size, (32, 32), crop)) for crop in crops[:300]]
    top, left, height, width = np.array(boxes).T
    np.testing.assert_array_equal(height, width)
    np.testing.assert_allclose(height, crops[:300, 0] * 4000, atol=0.5)
    shorter_sides = 224 / crops[:, 0]  # what the shorter side was resized to
    np.testing.assert_allclose(shorter_sides, np.rint(shorter_sides))
    assert shorter_sides.min().round() == 256 and shorter_sides.max().round() == 384
    assert top.min() >= 0 and (top + height).max() <= 4000 and np.ptp(top) > 1500
    assert left.min() >= 0 and (left + width).max() <= 5120 and np.ptp(left) > 2500


def _cut(content):
    return content[: len(content) // 2]


REFUSED = {
    "empty": (b"", "is empty"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "tiff": (stored(smooth(), "TIFF"), "a TIFF image"),
    "pdf": (b"%PDF-1.7 ...", "a PDF file"),
    "zeros": (bytes(5000), "zeros"),
    "text": (b"hello", "no known kind"),
    "cut png": (_cut(stored(smooth(), "PNG")), "a PNG file is damaged"),
    "cut jpeg": (_cut(jpeg(smooth(), None)), "a JPEG file is damaged"),
    "cut webp": (_cut(stored(smooth(), "WEBP")), "a WebP file is damaged"),
    "cut bmp": (_cut(stored(smooth(), "BMP")), "a BMP file is damaged"),
    "cut gif": (_cut(stored(palette_image()[0], "GIF")), "damaged"),
    "header only": (stored(smooth(), "PNG")[:40], "a PNG file is damaged"),
    "signature only": (b"\xff\xd8\xff", "a JPEG file is damaged"),
    "bits": (stored(Image.new("1", (20, 20)), "BMP"), "a BMP of a rare kind"),
    "animated": (
        stored(smooth(), "WEBP", save_all=True, append_images=[Image.fromarray(smooth(seed=1))]),
        "an animated WebP",
    ),
    "pixel": (stored(np.zeros((1, 1, 3), "uint8"), "PNG"), "1x1 pixels is smaller"),
    "bomb": (
        stored(smooth(), "PNG")[:16] + struct.pack(">II", 2**15, 2**15) + bytes(40),
        "32768x32768 pixels has more than",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_another_kind_is_refused_with_its_kind_and_name(name, tmp_path):
    content, reason = REFUSED[name]
    path = tmp_path / "a picture.png"
    path.write_bytes(content)
    for read in (
        lambda: load_images([path], (8, 8)),
        lambda: decode_bytes(content, (8, 8), name="a picture.png"),
    ):
        with pytest.raises(InputError, match=f"{reason}.*a picture.png") as caught:
            read()
        assert "\n" not in str(caught.value)
    with pytest.raises(tf.errors.OpError):
        in_pipeline([path], (8, 8))


def test_one_changed_byte_is_a_damaged_file_or_an_image():
    content = stored(smooth(), "PNG")
    at = content.index(b"IDAT") + 30
    with pytest.raises(InputError, match="a PNG file is damaged"):
        decode_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], (8, 8))


def test_missing_files_folders_and_too_large_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"No such file.*nowhere\.png"):
        load_images([tmp_path / "nowhere.png"], (8, 8))
    with pytest.raises(InputError, match="cannot be read.*directory"):
        load_images([tmp_path], (8, 8))
    with pytest.raises(InputError, match=r"paths is a list.*paths='a\.png'"):
        load_images("a.png", (8, 8))
    with pytest.raises(InputError, match=r"image_size=\(0, 8\)"):
        load_images([tmp_path / "a.png"], (0, 8))
    decoding._decoder.cache_clear()
    monkeypatch.setattr(decoding, "MAX_FILE_BYTES", 50)
    (tmp_path / "a.png").write_bytes(stored(smooth(), "PNG"))
    with pytest.raises(InputError, match="bytes, more than 50"):
        load_images([tmp_path / "a.png"], (8, 8))
    decoding._decoder.cache_clear()
