"""Arrays in a .npz file."""

import os

import numpy as np

from igpt_tf.data.images import size_pair
from igpt_tf.data.sources import ArrayExamples, Source, array_examples, heldout_split, register
from igpt_tf.errors import InputError

# Part -> how (images, labels) are called: ours, MedMNIST's, Keras' own files.
_KEYS = {
    "train": (("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train")),
    "valid": (("valid_images", "valid_labels"), ("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}


@register
def npz(*, path: str, image_size=None, heldout: float = 0.1, seed: int = 0) -> Source:
    """A `.npz` file with `images` and, if there are any, `labels`.

    Also `train_images`, `valid_images` (or `val_images`) and `test_images` with their labels, and
    Keras' `x_train`, `y_train`, `x_test`, `y_test`. Nothing pickled is read.

    Args:
        path: The file. Images are uint8[N,h,w,3] or uint8[N,h,w], labels int[N] from 0.
        image_size: (H, W), at most (h, w); the arrays' own by default.
        heldout: The share of the training part held out where the file has no such part.
        seed: Of the split.

    Raises:
        InputError: The file is missing or damaged, or its arrays are not as above.
    """
    arrays = _load(path)
    image_size = None if image_size is None else size_pair(image_size)
    parts = {part: _part(arrays, keys, image_size, path) for part, keys in _KEYS.items()}
    train, valid = parts["train"], parts["valid"]
    if train is None:
        raise InputError(
            "the file lacks the array `images` (or `train_images`); save it with numpy.savez. "
            f"Received: {path=}, arrays={sorted(arrays)}"
        )
    num_classes = _agreed(parts, path)
    if valid is None:
        train, valid = heldout_split(train, heldout, seed)
    class_names = None if num_classes is None else tuple(map(str, range(num_classes)))
    return Source(train, valid, parts["test"], class_names)


def _load(path: str) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):
        raise InputError(f"no such file; make one with numpy.savez. Received: {path=}")
    try:
        with np.load(path, allow_pickle=False) as file:
            wanted = {key for pairs in _KEYS.values() for pair in pairs for key in pair}
            return {name: file[name] for name in file.files if name in wanted}
    # A damaged file raises BadZipFile, ValueError, zlib.error, EOFError; a .npy AttributeError.
    except Exception as error:
        raise InputError(
            f"not a .npz file of plain arrays ({error}); save it with numpy.savez. "
            f"Received: {path=}"
        ) from None


def _part(arrays, keys, image_size, path) -> ArrayExamples | None:
    for images_key, labels_key in keys:
        if images_key in arrays:
            images, labels = arrays[images_key], arrays.get(labels_key)
            return array_examples(
                images, labels, image_size or images.shape[1:3], None, f"{path}: {images_key}"
            )
    return None


def _agreed(parts: dict, path: str) -> int | None:
    """The number of classes, or None without labels. Raises InputError where parts disagree."""
    present = [part for part in parts.values() if part is not None]
    sizes = {part.image_size for part in present}
    if len(sizes) > 1:
        raise InputError(
            f"the file's parts differ in size; give an image_size. Received: {path=}, {sizes=}"
        )
    if any((part.labels is None) != (present[0].labels is None) for part in present):
        raise InputError(
            f"some of the file's parts have labels and some have none. Received: {path=}"
        )
    if present[0].labels is None:
        return None
    return 1 + max(int(part.labels.max()) for part in present)
