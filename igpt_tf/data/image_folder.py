"""A folder of PNG and JPEG files."""

import os

from igpt_tf.data.examples import CROPS, ArrayExamples, FileExamples
from igpt_tf.data.images import size_pair
from igpt_tf.data.sources import Examples, Source, heldout_split, register
from igpt_tf.errors import InputError

_ENDINGS = (".png", ".jpg", ".jpeg")
_MEMORY_BOUND = 8 * 2**30  # bytes of decoded images; more stay in their files


@register
def image_folder(
    *, directory: str, image_size, heldout: float = 0.04, seed: int = 0, crop: str = "center"
) -> Source:
    """Images under `directory`: `train/CLASS/*`, or `train/*`, `CLASS/*` or `*` directly.

    A part `valid/` (or `val/`) is used where it exists, else a share of the training part is held
    out; a part `test/` likewise is optional. Images without class folders have no labels.

    With the centre crop, images that fit into 8 GiB are decoded once, into memory.

    Args:
        directory: The folder.
        image_size: (H, W); larger images are shrunk by area, smaller ones refused. Photographs
            stored sideways are turned upright first, as their EXIF says.
        heldout: The share of the training part held out where no `valid/` exists.
        seed: Of the split.
        crop: "center", or "random" for the training part: the paper's ImageNet recipe, afresh
            each time an image is shown.

    Raises:
        InputError: The folder is missing, empty or mixed, or an image is corrupt or too small.

    Source: paper, section 3.1 (ImageNet: 4 % held out).
    """
    image_size = size_pair(image_size)
    if crop not in CROPS:
        raise InputError(f"a crop is one of {', '.join(CROPS)}. Received: crop={crop!r}")
    class_names, parts = _parts(directory, image_size)
    if "valid" not in parts:
        parts["train"], parts["valid"] = heldout_split(parts["train"], heldout, seed)
    if crop == "random":
        files = parts.pop("train")
        train = FileExamples(files.paths, files.labels, image_size, crop="random")
        parts = {"train": train, **_in_memory(parts)}
    else:
        parts = _in_memory(parts)
    return Source(parts["train"], parts["valid"], parts.get("test"), class_names)


def _in_memory(parts: dict[str, FileExamples]) -> dict[str, Examples]:
    height, width = next(iter(parts.values())).image_size
    if sum(map(len, parts.values())) * height * width * 3 > _MEMORY_BOUND:
        return parts
    return {name: ArrayExamples(*files.arrays()) for name, files in parts.items()}


def _parts(directory: str, image_size) -> tuple[tuple[str, ...] | None, dict[str, FileExamples]]:
    """(class names or None, {"train": ..., and "valid", "test" where they exist})."""
    if not os.path.isdir(directory):
        raise InputError(
            f"no such folder; give one with train/CLASS/*.png in it. Received: {directory=}"
        )
    roots = {"train": directory}
    if os.path.isdir(os.path.join(directory, "train")):
        folders = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}
        inside = {name: os.path.join(directory, name) for name in folders}
        roots = {folders[name]: path for name, path in inside.items() if os.path.isdir(path)}
    class_names = _class_names(roots["train"])
    return class_names, {
        part: _files(root, class_names, image_size) for part, root in roots.items()
    }


def _class_names(root: str) -> tuple[str, ...] | None:
    folders, images = _listing(root)
    if folders and images:
        raise InputError(
            "a folder holds both images and folders; keep class folders only, or images only. "
            f"Received: directory={root}, folder={folders[0]}, image={images[0]}"
        )
    return tuple(folders) or None


def _files(root: str, class_names, image_size) -> FileExamples:
    names = _class_names(root)
    if names is None or class_names is None:
        if names:
            raise InputError(
                "a part has class folders and the training part has none; sort both or neither. "
                f"Received: directory={root}, folder={names[0]}"
            )
        return FileExamples(_images(root), None, image_size)
    strangers = [name for name in names if name not in class_names]
    if strangers:
        raise InputError(
            "a part has a class that the training part lacks; rename or remove its folder. "
            f"Received: directory={root}, folder={strangers[0]}"
        )
    found = [(path, name) for name in names for path in _images(os.path.join(root, name))]
    paths, labels = zip(*found, strict=True)
    return FileExamples(paths, [class_names.index(name) for name in labels], image_size)


def _images(folder: str) -> list[str]:
    images = [os.path.join(folder, name) for name in _listing(folder)[1]]
    if not images:
        raise InputError(
            f"a folder holds no images ({', '.join(_ENDINGS)}); put some there or remove it. "
            f"Received: directory={folder}"
        )
    return images


def _listing(folder: str) -> tuple[list[str], list[str]]:
    """(folders, image files), sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        entries = [entry for entry in entries if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    images = sorted(entry.name for entry in entries if entry.name.lower().endswith(_ENDINGS))
    return folders, [name for name in images if name not in folders]
