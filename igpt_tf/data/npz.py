"""Arrays in a `.npz` file."""

import os

import numpy as np

from igpt_tf.data.decoding import file_kind, size_pair
from igpt_tf.data.examples import ArrayExamples
from igpt_tf.data.sources import Source, array_examples, heldout_split, register
from igpt_tf.errors import InputError

# Split -> names of (images, labels): ours, those of MedMNIST's and of Keras' files.
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
        heldout: Fraction of the training split held out if the file has no such split.
        seed: Random seed of that split.

    Raises:
        InputError: The file is missing or damaged, or its arrays are not as above.
    """
    image_size = None if image_size is None else size_pair(image_size)
    arrays = _load(path)
    splits = {split: _split(arrays, keys, image_size, path) for split, keys in _KEYS.items()}
    train, valid = splits["train"], splits["valid"]
    if train is None:
        raise InputError(
            "the file has no array called `images` (or `train_images`); save it with "
            "numpy.savez(path, images=images, labels=labels). "
            f"Received: {path=}, arrays={', '.join(map(ascii, arrays)) or 'none'}"
        )
    num_classes = _check_agreement(splits, path)
    if valid is None:
        train, valid = heldout_split(train, heldout, seed)
    class_names = None if num_classes is None else tuple(map(str, range(num_classes)))
    return Source(train, valid, splits["test"], class_names)


def _load(path: str) -> dict[str, np.ndarray | None]:
    """{name: array}, None for arrays of other names, which are not read. Raises: InputError."""
    if not os.path.isfile(path):
        raise InputError(f"no such file; make one with numpy.savez. Received: {path=}")
    known = {key for pairs in _KEYS.values() for pair in pairs for key in pair}
    try:
        with open(path, "rb") as file:
            kind = file_kind(file.read(64))
        if kind == "a NumPy file":
            raise ValueError("it is a single array, .npy")
        if kind != "a zip archive":
            raise ValueError(f"it is {kind}")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] if name in known else None for name in file.files}
    # A damaged file raises BadZipFile, ValueError, zlib.error, EOFError, NotImplementedError, ...
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if "pickle" in reason:
            reason = "an array of Python objects, which is not read"
        raise InputError(
            f"not a .npz file of numbers ({reason}); save it with numpy.savez(path, images=images, "
            f"labels=labels). Received: {path=}"
        ) from None


def _split(arrays, keys, image_size, path) -> ArrayExamples | None:
    for images_key, labels_key in keys:
        if images_key in arrays:
            images, labels = arrays[images_key], arrays.get(labels_key)
            if images.ndim not in (3, 4):
                image_size = (1, 1)  # `array_examples` reports the error
            return array_examples(
                images, labels, image_size or images.shape[1:3], None, f"{path}: {images_key}"
            )
    return None


def _check_agreement(splits: dict, path: str) -> int | None:
    """The number of classes, or None without labels. Raises InputError where splits disagree."""
    present = [split for split in splits.values() if split is not None]
    sizes = {split.image_size for split in present}
    if len(sizes) > 1:
        raise InputError(
            f"the file's splits differ in size; give an image_size. Received: {path=}, {sizes=}"
        )
    if any((split.labels is None) != (present[0].labels is None) for split in present):
        raise InputError(
            f"some of the file's splits have labels and some have none. Received: {path=}"
        )
    if present[0].labels is None:
        return None
    return 1 + max(int(split.labels.max()) for split in present)
