"""Any image data set of TensorFlow Datasets, loaded into memory."""

import difflib

import numpy as np
from tqdm import tqdm

from igpt_tf.data.decoding import size_pair
from igpt_tf.data.examples import ArrayExamples
from igpt_tf.data.sources import Source, heldout_split, register, resize_arrays
from igpt_tf.errors import InputError


@register
def tfds_dataset(
    *, name: str, image_size, heldout: float = 0.1, seed: int = 0, data_dir: str | None = None
) -> Source:
    """A data set by its TFDS name, downloaded and prepared on first use.

    Args:
        name: Such as "svhn_cropped" or "stl10:1.0.0". It has features `image` (uint8) and, if
            labelled, `label`, and a split `train`; `validation` and `test` are used if there.
        image_size: (H, W); larger images are shrunk by area, smaller ones refused.
        heldout: Fraction of `train` held out if there is no `validation`.
        seed: Random seed of that split.
        data_dir: Folder of TFDS' data; None is TFDS' default.

    Raises:
        InputError: No such data set, it cannot be fetched, or it is not one of images.
    """
    image_size = size_pair(image_size)
    builder = _prepared(name, data_dir)
    label = dict(builder.info.features).get("label")
    labelled = hasattr(label, "names")  # a regression's label has none
    splits = {
        split: _load(builder, split, labelled, image_size)
        for split in ("train", "validation", "test")
        if split in builder.info.splits
    }
    train, valid = splits["train"], splits.get("validation")
    if valid is None:
        train, valid = heldout_split(train, heldout, seed)
    class_names = tuple(label.names) if labelled else None
    return Source(train, valid, splits.get("test"), class_names)


def _prepared(name: str, data_dir: str | None):
    # Imported here: it takes seconds, and only this source needs it.
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
        builder.download_and_prepare()
    # No such name, no network, no disk space, a changed checksum: each has an error of its own.
    except Exception as error:
        stem = name.split(":")[0].split("/")[0]
        known = tfds.list_builders(with_community_datasets=False)
        if stem not in known:
            close = difflib.get_close_matches(stem, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "see TFDS' catalogue."
            raise InputError(f"TFDS has no such data set; {hint} Received: {name=}") from None
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(
            f"TFDS cannot provide this data set ({reason}); check its version and the network. "
            f"Received: {name=}, {data_dir=}"
        ) from None
    features = builder.info.features
    if "image" not in features or "train" not in builder.info.splits:
        raise InputError(
            "the TFDS data set has no feature `image` or no split `train`; choose another. "
            f"Received: {name=}, features={sorted(features)}, splits={sorted(builder.info.splits)}"
        )
    return builder


def _load(builder, split: str, labelled: bool, image_size) -> ArrayExamples:
    import tensorflow_datasets as tfds

    images, labels = [], []
    examples = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
    total = builder.info.splits[split].num_examples
    for example in tqdm(examples, f"reading {split}", total, delay=2, leave=False):
        images.append(_resize(example["image"], image_size, builder.name))
        labels.append(example["label"] if labelled else -1)
    return ArrayExamples(np.stack(images), np.asarray(labels) if labelled else None)


def _resize(image: np.ndarray, image_size, name: str) -> np.ndarray:
    """uint8[H,W,3] of uint8[h,w,C], transparency composited on white."""
    if image.dtype != np.uint8:
        raise InputError(f"the TFDS data set's images are not uint8. Received: {name=}")
    if image.shape[-1] in (2, 4):
        opacity = image[..., -1:].astype("int32")
        image = ((image[..., :-1] * opacity + 255 * (255 - opacity) + 127) // 255).astype("uint8")
    if image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    try:
        return resize_arrays(image[None], image_size)[0]
    except InputError as error:
        raise InputError(f"{error}. Received: {name=}") from None
