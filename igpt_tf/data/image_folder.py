"""A folder of image files."""

import collections
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from igpt_tf.data import decoding
from igpt_tf.data.decoding import WHITE, size_pair
from igpt_tf.data.examples import CROPS, FileExamples
from igpt_tf.data.sources import Source, heldout_split, register
from igpt_tf.errors import InputError, check_choice
from igpt_tf.files import IMAGE_ENDINGS, list_folder

# Names of the folders of the splits, in any case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing"),
}
SMALL_IMAGES = ("refuse", "skip", "enlarge")
_MEMORY_BOUND = 8 * 2**30  # bytes of decoded images; more stay in their files


@register
def image_folder(
    *,
    directory: str,
    image_size: int | tuple[int, int],
    heldout: float = 0.04,
    seed: int = 0,
    crop: str = "centre",
    small_images: str = "refuse",
    background: tuple[int, int, int] = WHITE,
) -> Source:
    """Image files in `directory`, sorted into splits and classes by their folders.

        train/CLASS/*  train/*  CLASS/*  *

    The folders of the splits are called train or training; valid, val, validation or dev; test or
    testing; in any case. Without a folder of the valid split, a fraction of the training split is
    held out. A class folder may contain folders; all images in them belong to the class. Images
    without class folders have no labels. Prints how many files were found, used and left out.

    With the centre crop, images that fit into 8 GiB are decoded once, into memory.

    Args:
        directory: The folder.
        image_size: (H, W) to which the images are resized; see `decoding.decode_image`.
        heldout: Fraction of the training split held out as `valid`, if there is no such folder.
        seed: Random seed of that split.
        crop: "centre", or "random" for the training split: the paper's ImageNet recipe, another
            crop each time an image is used.
        small_images: What to do with images smaller than `image_size`: "refuse", "skip" or
            "enlarge". The latter two read the size of every file first.
        background: RGB of the page that shows through transparent pixels.

    Raises:
        InputError: The folder is missing or empty, or it is ambiguous which images belong to which
            split and class.

    Source: paper, section 3.1 (ImageNet: 4 % held out).
    """
    image_size = size_pair(image_size)
    check_choice("image_folder.crop", crop, CROPS)
    check_choice("image_folder.small_images", small_images, SMALL_IMAGES)
    if len(background) != 3 or not all(level in range(256) for level in background):
        raise InputError(f"background must be three numbers from 0 to 255. Received: {background=}")
    if not os.path.isdir(directory):
        raise InputError(
            f"no such folder; give one with train/CLASS/*.png in it. Received: {directory=}"
        )
    listing = list_folder(directory)
    left_out = dict(listing.left_out)
    folders = _split_folders(directory, listing.images)
    splits, left_over = _by_split(folders, listing.images)
    if left_over:
        left_out["beside the folders of the splits"] = left_over
    class_names = _class_names(directory, splits)
    _check_not_empty(directory, listing.folders, folders, splits)
    if small_images != "refuse":
        small = _find_small(
            directory, [name for split in splits.values() for name in split], image_size
        )
        if small_images == "skip":
            left_out["smaller than image_size"] = sorted(small)
            for images in splits.values():
                for name in small & images.keys():
                    del images[name]
            _check_not_empty(directory, listing.folders, folders, splits)
    num_images = sum(map(len, splits.values()))
    in_memory = num_images * image_size[0] * image_size[1] * 3 <= _MEMORY_BOUND

    def examples(split):
        labels = (
            None if class_names is None else [class_names.index(c) for c in splits[split].values()]
        )
        return FileExamples(
            [os.path.join(directory, name) for name in splits[split]],
            labels,
            image_size,
            in_memory=in_memory,
            enlarge=small_images == "enlarge",
            background=tuple(background),
        )

    found = {split: examples(split) for split in splits}
    train, valid = found["train"], found.get("valid")
    if valid is None:
        train, valid = heldout_split(train, heldout, seed)
    names = None  # as text that JSON can hold
    if class_names is not None:
        names = tuple(os.fsencode(name).decode(errors="backslashreplace") for name in class_names)
    source = Source(train.with_crop(crop), valid, found.get("test"), names)
    _print_account(directory, listing.images, source, left_out)
    if small_images == "enlarge" and small:
        print(f"{len(small):,} images are smaller than image_size and are enlarged")
    return source


def _split_folders(directory: str, images: list[str]) -> dict[str, str]:
    """{split: folder}, {"train": ""} without such folders. Raises InputError if it is ambiguous."""
    counts = collections.Counter(name.split(os.sep)[0] for name in images if os.sep in name)
    folders = {}
    for entry in sorted(os.listdir(directory)):
        split = next((key for key, names in SPLIT_NAMES.items() if entry.lower() in names), None)
        if split is None or not os.path.isdir(os.path.join(directory, entry)):
            continue
        if split in folders:
            raise InputError(
                f"two folders of the {split} split; merge them or rename one. "
                f"Received: {directory=}, folders={folders[split]}, {entry}"
            )
        folders[split] = entry
    if not folders:
        return {"train": ""}
    others = [folder for folder in counts if folder not in folders.values()]
    names = ", ".join(folders.values())
    if others:
        raise InputError(
            f"it is ambiguous whether {names} are splits or classes, beside "
            f"{', '.join(others[:3])}: move the class folders into the folder of a split, as in "
            f"train/CLASS, or rename the class. Received: {directory=}"
        )
    if "train" not in folders:
        raise InputError(
            f"there is a folder {names}, but none called train; add it, or rename {names}. "
            f"Received: {directory=}"
        )
    return folders


def _by_split(folders: dict[str, str], images: list[str]) -> tuple[dict, list[str]]:
    """({split: {image: its class or None}}, images in no split)."""
    splits, left_over = {split: {} for split in folders}, []
    split_of = {folder: split for split, folder in folders.items()}
    for name in images:
        folder, rest = "", name
        if "" not in split_of and os.sep in name:
            folder, rest = name.split(os.sep, 1)
        if folder not in split_of:
            left_over.append(name)
            continue
        inside = rest.split(os.sep)
        splits[split_of[folder]][name] = inside[0] if len(inside) > 1 else None
    return splits, left_over


def _class_names(directory: str, splits: dict) -> tuple[str, ...] | None:
    """The names of the training split's classes, or None. Raises: InputError."""
    for images in splits.values():
        flat = [name for name, label in images.items() if label is None]
        nested = [name for name, label in images.items() if label is not None]
        if flat and nested:
            raise InputError(
                "a folder holds both images and folders of images; keep class folders only, or "
                f"images only. Received: {directory=}, image={flat[0]}, in a folder={nested[0]}"
            )
    names = {split: sorted({label for label in images.values() if label is not None})
             for split, images in splits.items()}  # fmt: skip
    for split, classes in names.items():
        if bool(classes) != bool(names["train"]) and splits[split]:
            raise InputError(
                f"only one of train and {split} has class folders; sort both or neither. "
                f"Received: {directory=}"
            )
        unknown = [name for name in classes if name not in names["train"]]
        if unknown:
            raise InputError(
                f"the {split} split has a class that the training split lacks; rename or remove "
                f"its folder. Received: {directory=}, class={unknown[0]}"
            )
    return tuple(names["train"]) or None


def _check_not_empty(directory: str, all_folders, split_folders, splits: dict) -> None:
    """Raises InputError if a split or one of its class folders holds no images."""
    for split, folder in split_folders.items():
        images = splits[split]
        expected = [folder]
        if any(images.values()):  # class names
            expected += [path for path in all_folders if path and os.path.dirname(path) == folder]
        for path in expected:
            if not any(name.startswith(os.path.join(path, "")) or not path for name in images):
                raise InputError(
                    f"a folder holds no images ({', '.join(IMAGE_ENDINGS)}); put some there or "
                    f"remove it. Received: folder={os.path.join(directory, path)}"
                )


def _find_small(directory: str, names: list[str], image_size: tuple[int, int]) -> set[str]:
    """The images smaller than `image_size`. Raises: InputError, naming a file without a size."""
    # A session of its own: TensorFlow's runtime must not start before the strategy is made.
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0}, use_per_session_threads=True)
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        path = tf.compat.v1.placeholder(tf.string, [])
        size_of = session.make_callable(decoding.upright_size(tf.io.read_file(path)), [path])

        def is_small(name):
            file = os.path.join(directory, name)
            try:
                return bool(np.any(size_of(os.fsencode(file)) < image_size))
            except tf.errors.OpError as error:
                raise decoding.refusal(error, file) from None

        with ThreadPoolExecutor() as threads:
            found = threads.map(is_small, names)
            found = tqdm(found, "image sizes", len(names), unit="file", delay=2, leave=False)
            return {name for name, small in zip(names, found, strict=True) if small}


def _print_account(directory: str, found: list[str], source: Source, left_out: dict) -> None:
    splits = {"train": source.train, "valid": source.valid, "test": source.test}
    counts = {name: len(split) for name, split in splits.items() if split is not None}
    sizes = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    used = sum(counts.values())
    line = f"{directory}: {len(found):,} image files, {used:,} used ({sizes})"
    if source.class_names is not None:
        classes = ", ".join(source.class_names[:5]) + (", ..." if source.class_names[5:] else "")
        line += f", {len(source.class_names)} classes ({classes})"
    for reason, names in left_out.items():
        if names:
            line += f"\n  left out: {len(names):,} {reason} (such as {names[0]})"
    print(line.encode("utf-8", "backslashreplace").decode())
