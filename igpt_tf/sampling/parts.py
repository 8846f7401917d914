"""Images painted in parts at the same time, a thread each.

Painting is a long row of small products, of which a second core makes each little faster; two rows
side by side keep both busy. What an image becomes depends on its own seed, so parts change nothing.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from igpt_tf import runtime

_FEWEST_IMAGES = 8  # in a part: each reads all weights for every pixel


def count_parts(num_images: int, most: int) -> int:
    """Into how many equal parts: `most` at most, and one where there is a GPU or TPU."""
    if runtime.has_accelerator():
        return 1
    return runtime.largest_divisor(num_images, min(most, num_images // _FEWEST_IMAGES))


def paint_in_parts(paint: Callable[[slice], np.ndarray], images: range, most: int) -> np.ndarray:
    """What `paint` returns for the parts, put together again.

    Args:
        paint: Called with the part of the images that it is to paint, by several threads.
        images: The numbers of all of them.
        most: How many parts there may be.
    """
    count = count_parts(len(images), most)
    size = len(images) // count
    parts = [slice(start, start + size) for start in images[::size]]
    with ThreadPoolExecutor(count) as pool:
        return np.concatenate(list(pool.map(paint, parts)))
