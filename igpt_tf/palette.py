"""The palette: RGB images to tokens and back.

Distances are computed in 32-bit fixed point, in units of 1/4096 of an intensity level. Sums of
integers are the same on every device, so the host's colour table and the device's arithmetic give
identical tokens. The resolution is finer than that of float32 arithmetic on [-1, 1].
"""

import functools
import hashlib
import os

import gin
import numpy as np
from tqdm import tqdm

from igpt_tf import files
from igpt_tf.errors import InputError

_FRACTION_BITS = 12
_CELL = 8  # the colour table is filled in cubes of 8 x 8 x 8 colours
_CHUNK = 2**22  # elements of the largest temporary while filling the table


class Palette:
    """An ordered set of colours; a token is the row of the nearest one.

    Args:
        centroids: float32[V,3], RGB scaled to [-1, 1].

    Attributes:
        centroids: float32[V,3].
        fingerprint: Hex digest of the centroids.

    Raises:
        InputError: The array is not [V,3], not finite or outside [-1, 1].

    Source: paper, section 3.2 (nearest centre, squared Euclidean distance, lowest index on a tie).
    """

    def __init__(self, centroids: np.ndarray):
        centroids = np.asarray(centroids)
        if centroids.ndim != 2 or centroids.shape[1] != 3 or not 1 <= len(centroids) <= 2**15:
            raise InputError(
                f"a palette is an array [colours, 3]. Received: shape={centroids.shape}"
            )
        if centroids.dtype.kind != "f" or not np.all(np.abs(centroids) <= 1.001):
            raise InputError(
                "a palette's colours are floats in [-1, 1] (x / 127.5 - 1). "
                f"Received: dtype={centroids.dtype}, largest={np.abs(centroids).max():.4g}"
            )
        self.centroids = np.ascontiguousarray(centroids, "<f4")
        self.fingerprint = hashlib.sha256(self.centroids.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.centroids)

    @classmethod
    def load(cls, path: str) -> "Palette":
        """Reads a `.npy` file, float32[V,3] in [-1, 1]. Raises: InputError."""
        if not os.path.isfile(path):
            raise InputError(
                "the palette file does not exist; fit one with tools.fit_palette or fetch "
                f"OpenAI's (docs/weights.md). Received: path={path}"
            )
        try:
            with open(path, "rb") as file:
                if file.read(6) != b"\x93NUMPY":
                    raise ValueError(
                        "it is not a NumPy file: a web page, or an unfinished download?"
                    )
            return cls(np.load(path, allow_pickle=False))
        except InputError as error:
            raise InputError(f"{error}, path={path}") from None
        except Exception as error:  # NumPy parses the header as Python, so nearly any error
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"not a palette file ({reason}). Received: path={path}") from None

    @classmethod
    def grey(cls, num_levels: int) -> "Palette":
        """Makes a palette of `num_levels` greys, evenly spaced from black to white."""
        levels = np.linspace(-1, 1, num_levels, dtype="float32")
        return cls(np.repeat(levels[:, None], 3, axis=1))

    @classmethod
    def fit(cls, images: np.ndarray, num_colours: int, seed: int = 0) -> "Palette":
        """Fits a palette by k-means over the pixels.

        Args:
            images: uint8[N,H,W,3].
            num_colours: Number of colours V.
            seed: Random seed of k-means.

        Returns:
            A palette without unused centres, sorted by brightness.

        Raises:
            InputError: The images hold fewer than `num_colours` different colours.
        """
        from sklearn.cluster import MiniBatchKMeans

        colours, counts = _count_colours(images)
        if len(colours) < num_colours:
            raise InputError(
                f"the images hold only {len(colours)} different colours; lower num_colours. "
                f"Received: num_colours={num_colours}"
            )
        points = (colours / 127.5 - 1).astype("float32")
        kmeans = MiniBatchKMeans(
            num_colours,
            random_state=seed,
            batch_size=4096,
            n_init=1,
            reassignment_ratio=0.01,
            compute_labels=False,
        ).fit(points, sample_weight=counts)
        centroids = _reseed_empty(kmeans.cluster_centers_, points, counts)
        return cls(centroids[np.argsort(centroids.sum(axis=1), kind="stable")])

    def save(self, path: str) -> None:
        """Writes the centroids as `.npy`, float32[V,3], atomically."""
        with files.atomic_write(os.fspath(path)) as file:
            np.save(file, self.centroids, allow_pickle=False)

    @property
    def colours(self) -> np.ndarray:
        """uint8[V,3]: the displayed colour of each token."""
        return np.clip(np.rint(127.5 * (self.centroids + 1)), 0, 255).astype("uint8")

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8[B,H,W,3] -> tokens int32[B,T], T = H * W in raster order, by the colour table.

        Raises:
            InputError: The images are of another type or shape.
        """
        images = np.asarray(images)
        _check_images(images)
        # Each pixel is read as 4 bytes, of which the last belongs to the next pixel and is masked.
        channels = np.append(images, np.uint8(0))
        colours = np.ndarray(images.size // 3, "<i4", channels, strides=(3,)) & 0xFFFFFF
        tokens = self.table.take(colours, mode="clip")
        return tokens.reshape(len(images), images.shape[1] * images.shape[2]).astype("int32")

    def decode(self, tokens: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
        """tokens int[B,T] -> uint8[B,H,W,3].

        Raises:
            InputError: The tokens are none of the palette, or of another number than the pixels.
        """
        tokens = np.asarray(tokens)
        num_pixels = image_size[0] * image_size[1]
        if tokens.dtype.kind not in "iu" or tokens.ndim != 2 or tokens.shape[1] != num_pixels:
            raise InputError(
                f"tokens are int[B,{num_pixels}] for images of {image_size[0]}x{image_size[1]} "
                f"pixels. Received: dtype={tokens.dtype}, shape={tokens.shape}"
            )
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < len(self)):
            raise InputError(
                f"tokens are 0 to {len(self) - 1} with this palette. "
                f"Received: min={tokens.min()}, max={tokens.max()}"
            )
        return self.colours[tokens].reshape(len(tokens), *image_size, 3)

    def encode_tensor(self, images):
        """`encode` in tensor operations, for use inside a jitted step; the same tokens."""
        from keras import ops

        colours, offsets = self._fixed_point
        pixels = ops.cast(ops.reshape(images, (-1, images.shape[1] * images.shape[2], 3)), "int32")
        red, green, blue = (pixels[..., i, None] for i in range(3))
        nearness = red * colours[:, 0] + green * colours[:, 1] + blue * colours[:, 2] - offsets
        return ops.cast(ops.argmax(nearness, axis=-1), "int32")

    def decode_tensor(self, tokens, image_size: tuple[int, int]):
        """`decode` in tensor operations."""
        from keras import ops

        return ops.reshape(ops.take(self.colours, tokens, axis=0), (-1, *image_size, 3))

    @functools.cached_property
    def _fixed_point(self) -> tuple[np.ndarray, np.ndarray]:
        """int32[V,3] centroids c and int32[V] offsets |c|^2 / 2; argmax of x.c - offset is nearest.

        Everything is below 2^31: x.c <= 3 * 255 * 255 * 2^12.
        """
        colours = np.rint((self.centroids.astype("float64") + 1) * 127.5 * 2**_FRACTION_BITS)
        offsets = np.rint((colours**2).sum(axis=1) / 2 ** (_FRACTION_BITS + 1))
        return colours.astype("int32"), offsets.astype("int32")

    @functools.cached_property
    def table(self) -> np.ndarray:
        """int16[2^24]: the token of every colour, at index blue << 16 | green << 8 | red."""
        table = np.empty((32, _CELL) * 3, "int16")
        candidates = self._candidates_of_cells()
        counts = candidates.sum(axis=1)
        order = np.argsort(counts, kind="stable")
        start = 0
        while start < len(order):
            # Cells with similar numbers of candidates are filled together, padded to the largest.
            size = max(1, _CHUNK // (_CELL**3 * counts[order[start]]))
            cells = order[start : start + size]
            self._fill_cells(table, cells, candidates[cells], counts[cells].max())
            start += size
        return table.reshape(-1)

    def _candidates_of_cells(self) -> np.ndarray:
        """bool[32768,V]: which centroids can be nearest to some colour of each cube of the table.

        A centroid cannot be if its smallest distance to the cube exceeds another's largest one.
        """
        colours = (self.centroids.astype("float64") + 1) * 127.5
        low = np.arange(0, 256, _CELL)[:, None]
        high = low + _CELL - 1
        least, most = [], []
        for channel in colours.T:
            least.append(np.maximum(0, np.maximum(low - channel, channel - high)) ** 2)
            most.append(np.maximum(abs(channel - low), abs(channel - high)) ** 2)
        least, most = (_outer_sum(*axes).reshape(-1, len(self)) for axes in (least, most))
        return least <= most.min(axis=1, keepdims=True) + 0.01  # above the error of fixed point

    def _fill_cells(self, table, cells, candidates, width) -> None:
        """Writes the tokens of `cells` int[C]; `candidates` bool[C,V], at most `width` per cell."""
        colours, offsets = self._fixed_point
        # A stable sort keeps the lowest index first. Padding by non-candidates changes no result.
        index = np.argsort(~candidates, axis=1, kind="stable")[:, :width]
        index.sort(axis=1)
        colours, offsets = colours[index], offsets[index]
        red, green, blue = np.unravel_index(cells, (32, 32, 32))

        def product(cell, channel):  # x.c is a sum over the channels: int32[C,_CELL,width]
            positions = cell[:, None] * _CELL + np.arange(_CELL)
            return positions.astype("int32")[..., None] * colours[:, None, :, channel]

        reds, greens, blues = product(red, 0), product(green, 1), product(blue, 2)
        blues -= offsets[:, None]
        nearness = blues[:, :, None, None] + greens[:, None, :, None] + reds[:, None, None]
        best = nearness.reshape(len(cells), -1, width).argmax(axis=-1)
        tokens = np.take_along_axis(index, best, axis=1)
        table[blue, :, green, :, red, :] = tokens.reshape(-1, _CELL, _CELL, _CELL)


def _outer_sum(red, green, blue):
    """Three float[32,V] -> float[32,32,32,V]."""
    return red[:, None, None] + green[None, :, None] + blue[None, None]


def _count_colours(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(different colours uint8[C,3] in ascending order, number of pixels of each int[C])."""
    counts = np.zeros(2**24, "int64")
    for image in tqdm(images, "counting colours", unit="image", delay=2, leave=False):
        np.add.at(counts, image.reshape(-1, 3) @ np.array([2**16, 2**8, 1]), 1)
    codes = np.flatnonzero(counts)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype("uint8")
    return colours, counts[codes]


def _reseed_empty(centroids, points, counts):
    """Moves centres without points to the points with the largest weighted errors."""
    from sklearn.metrics import pairwise_distances_argmin_min

    for _ in range(10):
        nearest, distance = pairwise_distances_argmin_min(points, centroids)
        empty = np.setdiff1d(np.arange(len(centroids)), nearest)
        if not len(empty):
            break
        centroids[empty] = points[np.argsort(-counts * distance**2)[: len(empty)]]
    return centroids.clip(-1, 1).astype("float32")


def check_palette(palette: Palette, model) -> None:
    """Raises: InputError: The palette's size is not the vocabulary size of an `ImageGPT`."""
    if len(palette) != model.vocabulary_size:
        raise InputError(
            "the palette's size must be the model's vocabulary size; choose another palette or set "
            f"build_model.vocabulary_size to {len(palette)} for a new model. Received: "
            f"colours={len(palette)}, vocabulary_size={model.vocabulary_size}"
        )


def _check_images(images) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(
            "images are uint8[B,H,W,3]. "
            f"Received: dtype={images.dtype}, shape={tuple(images.shape)}"
        )


@gin.register
def grey_palette(*, num_levels: int) -> Palette:
    """Makes a palette of evenly spaced greys."""
    return Palette.grey(num_levels)
