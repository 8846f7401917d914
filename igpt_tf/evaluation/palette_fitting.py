"""Fits a palette to images and measures it: colours used, PSNR, a picture before and after."""

import os

import gin
import numpy as np

from igpt_tf import config, files
from igpt_tf.data import Source, image_folder
from igpt_tf.data.sources import Examples
from igpt_tf.errors import InputError
from igpt_tf.formatting import table
from igpt_tf.image_grid import grid, write_png
from igpt_tf.palette import Palette

_NUM_SHOWN = 8


@gin.configurable
def fit_palette(
    *,
    workdir: str,
    images: str | None = None,
    source: Source | None = None,
    image_size: int = 32,
    num_colours: int = 512,
    num_images: int = 20_000,
    seed: int = 0,
) -> dict:
    """Fits a palette by k-means on training images and measures it on held-out images.

    Args:
        workdir: Folder for `palette.npy`, `palette.json` and `palette.png`.
        images: A folder of images, instead of `source`.
        source: A data set, instead of `images`.
        image_size: Size to which images of the folder are resized.
        num_colours: Number of colours, the vocabulary size of a model.
        num_images: Maximum number of images to fit on, and to measure on; chosen at random.
        seed: Random seed of the choice of images and of k-means.

    Returns:
        The content of `palette.json`: "num_images" {"fitted", "measured"}, "num_colours",
        "used_colours", "psnr" in dB, ...

    Raises:
        InputError: Both or none of `images` and `source` are given, or the images have fewer
            colours than `num_colours`.

    Source: paper, section 2 ("context reduction"): k = 512 on RGB pixels.
    """
    if (source is None) == (images is None):
        raise InputError(
            "pass either a folder, --images=FOLDER, or a data set, e.g. "
            f"--gin_param='fit_palette.source=@digits()'. Received: images={images}"
        )
    if images:
        _check_separate(images, workdir)
    files.make_workdir(workdir)
    if images:
        source = image_folder(directory=images, image_size=image_size)
    config.refuse_unread_bindings()
    train, heldout = (_choose(part, num_images, seed) for part in (source.train, source.valid))
    print(f"k-means of {num_colours} colours in {len(train):,} images, up to some minutes ...")
    palette = Palette.fit(train, num_colours, seed)
    report = {
        "data": source.description,
        "seed": seed,
        "num_images": {"fitted": len(train), "measured": len(heldout)},
        **measure(palette, heldout),
    }
    palette.save(os.path.join(workdir, "palette.npy"))
    files.write_json(os.path.join(workdir, "palette.json"), report)
    write_png(os.path.join(workdir, "palette.png"), before_and_after(palette, heldout))
    return report


def format_report(report: dict, path: str) -> str:
    """The report of `fit_palette` as a table of one row; `path` is that of the palette."""
    num_images = report["num_images"]
    header = ["palette", "colours", "used", "PSNR (dB)", "images fitted", "images measured"]
    row = [
        path,
        report["num_colours"],
        report["used_colours"],
        f"{report['psnr']:.2f}",
        f"{num_images['fitted']:,}",
        f"{num_images['measured']:,}",
    ]
    return table(header, [row])


def measure(palette: Palette, images: np.ndarray) -> dict:
    """How well a palette represents images uint8[N,H,W,3].

    Returns:
        {"num_colours", "used_colours", "psnr": mean over images in dB, "fingerprint"}.
    """
    tokens = palette.encode(images)
    decoded = palette.decode(tokens, images.shape[1:3])
    return {
        "num_colours": len(palette),
        "used_colours": len(np.unique(tokens)),
        "psnr": float(np.mean([_psnr(*pair) for pair in zip(images, decoded, strict=True)])),
        "fingerprint": palette.fingerprint,
    }


def before_and_after(palette: Palette, images: np.ndarray) -> np.ndarray:
    """uint8[H',W',3]: some images in the upper row, encoded and decoded in the lower row."""
    images = images[:: max(1, len(images) // _NUM_SHOWN)][:_NUM_SHOWN]
    decoded = palette.decode(palette.encode(images), images.shape[1:3])
    return grid(np.concatenate([images, decoded]), columns=len(images))


def _check_separate(images: str, workdir: str) -> None:
    """Refuses a workdir among the images: its picture files would be training images."""
    images, workdir = os.path.realpath(images), os.path.realpath(workdir)
    if os.path.commonpath([images, workdir]) == images:
        raise InputError(
            "the workdir is inside the folder of images, where its own pictures would be taken "
            f"for images; choose another. Received: images={images}, workdir={workdir}"
        )


def _choose(examples: Examples, num_images: int, seed: int) -> np.ndarray:
    """At most `num_images` random images, uint8[M,H,W,3]."""
    order = np.random.RandomState(seed).permutation(len(examples))[:num_images]
    return examples.take(np.sort(order)).arrays()[0]


def _psnr(image: np.ndarray, decoded: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB; a lossless image counts as an error of 1 in one channel."""
    error = np.mean((image.astype("float64") - decoded) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1 / image.size)))
