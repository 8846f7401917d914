"""Shards on disk: TFRecord files of PNG images, where each record starts, and an index of all.

    index.json                     written last: what is there, with a checksum for every file
    train-00000-of-00012.tfrecord  `tf.train.Example`s: image (PNG bytes), label (if labelled)
    train-00000-of-00012.npy       int64[n,2]: each record's first byte, and its label or -1

Each file is written under another name and renamed when whole, so a run that was interrupted goes
on behind the last whole shard.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from igpt_tf.data.sources import Examples, Source
from igpt_tf.errors import InputError
from igpt_tf.files import write_json

INDEX = "index.json"
_UNFINISHED = "unfinished.json"
_VERSION = 1
_FRAME = 16  # bytes of length and checksums around a record
_TOGETHER = 1024  # images encoded at once


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard as the index tells of it.

    Attributes:
        file: The TFRecord file's name; the records' places are in the .npy file beside it.
        images: Number of records.
        bytes: Size of the TFRecord file.
        sha256, records_sha256: Checksums of the two files.
    """

    file: str
    images: int
    bytes: int
    sha256: str
    records_sha256: str


def write(source: Source, directory: str, *, images_per_shard: int, watch=iter) -> dict:
    """Writes a source as shards, or goes on writing them.

    Args:
        source: Every part is written in the order stored, as `arrays()` gives it.
        directory: New, or left by an interrupted run with the same arguments.
        images_per_shard: At most.
        watch: Wraps the list of shards, such as `tqdm`.

    Returns:
        The index: {"version", "source", "image_size", "class_names", "images_per_shard",
        "parts": {part: [a `Shard` as a dictionary, ...]}}.

    Raises:
        InputError: The folder holds something else or cannot be written, an image cannot be read,
            or the source's images are another at every look.
    """
    parts = {part: getattr(source, part) for part in ("train", "valid", "test")}
    parts = {part: examples for part, examples in parts.items() if examples is not None}
    _check_arguments(parts.values(), images_per_shard)
    index = {
        "version": _VERSION,
        "source": source.description,
        "image_size": list(source.image_size),
        "class_names": None if source.class_names is None else list(source.class_names),
        "images_per_shard": images_per_shard,
    }
    with _writing(directory):
        if not _begin(directory, index):
            return read_index(directory)
        shards = {part: [] for part in parts}
        for part, start, name in watch(_plan(parts, images_per_shard)):
            rows = np.arange(start, min(start + images_per_shard, len(parts[part])))
            path = os.path.join(directory, name)
            if not _is_whole(path, len(rows)):
                _write_shard(path, *parts[part].take(rows).arrays())
            shards[part].append(dataclasses.asdict(_entry(path, len(rows))))
        write_json(os.path.join(directory, INDEX), {**index, "parts": shards})
        os.remove(os.path.join(directory, _UNFINISHED))
    return read_index(directory)


def read_index(directory: str) -> dict:
    """The index as `write` returns it. Raises: InputError."""
    path = os.path.join(directory, INDEX)
    if os.path.exists(os.path.join(directory, _UNFINISHED)) and not os.path.exists(path):
        raise InputError(
            "these shards are unfinished; run tools.make_tfrecords again as before to finish "
            f"them. Received: {directory=}"
        )
    try:
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
        index["version"], index["image_size"], index["class_names"], index["parts"]["train"]
        parts = {
            part: [Shard(**shard) for shard in shards] for part, shards in index["parts"].items()
        }
    except OSError as error:
        raise InputError(
            f"no shards here ({error.strerror}); make them with tools.make_tfrecords. "
            f"Received: {path=}"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            "this is not the index of shards, or a damaged one; run tools.make_tfrecords into a "
            f"new folder. Received: {path=}"
        ) from None
    if index["version"] != _VERSION:
        raise InputError(
            f"these shards are of version {index['version']!r}, not {_VERSION}; make them again. "
            f"Received: {path=}"
        )
    return {**index, "parts": parts}


def read_records(directory: str, shard: Shard) -> np.ndarray:
    """int64[n,2]: each record's first byte and its label or -1. Raises: InputError."""
    path = os.path.join(directory, shard.file)
    check_size(path, shard)
    beside = _records_path(path)
    try:
        if _sha256(beside) != shard.records_sha256:
            raise InputError(_damaged("its checksum differs from the index", beside))
        records = np.load(beside, allow_pickle=False)
    except OSError as error:
        raise InputError(_damaged(error.strerror, beside)) from None
    if records.shape != (shard.images, 2):
        raise InputError(_damaged(f"the index says {shard.images} images", beside))
    return records


def check_size(path: str, shard: Shard) -> None:
    """Raises InputError where a shard is missing or cut."""
    size = os.path.getsize(path) if os.path.isfile(path) else None
    if size is None:
        raise InputError(_damaged("No such file", path))
    if size != shard.bytes:
        raise InputError(_damaged(f"{size} bytes, the index says {shard.bytes}", path))


def check_content(path: str, shard: Shard) -> None:
    """Raises InputError where a shard is not what was written; reads all of it."""
    check_size(path, shard)
    if _sha256(path) != shard.sha256:
        raise InputError(_damaged("its checksum differs from the index", path))


def _damaged(reason: str | None, path: str) -> str:
    return (
        f"a shard is missing or damaged ({reason}); fetch it again, or make the shards again with "
        f"tools.make_tfrecords. Received: {path=}"
    )


def _check_arguments(parts: Iterable[Examples], images_per_shard: int) -> None:
    if images_per_shard < 1:
        raise InputError(f"a shard holds one image or more. Received: {images_per_shard=}")
    components = [one for part in parts for one in getattr(part, "parts", (part,))]
    if any(getattr(one, "crop", "center") == "random" for one in components):
        raise InputError(
            "a random crop is drawn each time an image is shown, and a shard holds one picture of "
            "it; set image_folder.crop='center'. Received: crop='random'"
        )


def _begin(directory: str, index: dict) -> bool:
    """Marks the folder as unfinished; False where its shards are finished. Raises: InputError."""
    os.makedirs(directory, exist_ok=True)
    for name in (INDEX, _UNFINISHED):
        path = os.path.join(directory, name)
        if not os.path.exists(path):
            continue
        if not _agrees(path, index):
            raise InputError(
                "this folder holds shards of another source or another size; choose a new one. "
                f"Received: {directory=}"
            )
        if name == INDEX:
            return False
    write_json(os.path.join(directory, _UNFINISHED), index)
    return True


def _agrees(path: str, index: dict) -> bool:
    """Whether the JSON file holds all that `index` does."""
    with open(path, encoding="utf-8") as file:
        try:
            found = json.load(file)
        except ValueError:
            return False
    return {key: found.get(key) for key in index} == json.loads(json.dumps(index))


def _plan(parts: dict[str, Examples], images_per_shard: int) -> list[tuple[str, int, str]]:
    """(part, first image, file name) of each shard."""
    plan = []
    for part, examples in parts.items():
        starts = range(0, len(examples), images_per_shard)
        plan += [
            (part, start, f"{part}-{number:05d}-of-{len(starts):05d}.tfrecord")
            for number, start in enumerate(starts)
        ]
    return plan


def _write_shard(path: str, images: np.ndarray, labels: np.ndarray | None) -> None:
    if labels is None:
        labels = np.full(len(images), -1)
    records, offset = [], 0
    with tf.io.TFRecordWriter(path + ".part") as writer:
        for label, content in zip(labels, _pngs(images), strict=True):
            record = _example(content, int(label))
            records.append((offset, label))
            offset += len(record) + _FRAME
            writer.write(record)
    os.replace(path + ".part", path)
    with open(path + ".records.part", "wb") as file:
        np.save(file, np.array(records, "int64"))
    os.replace(path + ".records.part", _records_path(path))


def _pngs(images: np.ndarray) -> Iterator[bytes]:
    for start in range(0, len(images), _TOGETHER):
        yield from tf.io.encode_png(images[start : start + _TOGETHER]).numpy()


def _example(content: bytes, label: int) -> bytes:
    """A serialised tf.train.Example."""
    feature = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))}
    if label >= 0:
        feature["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def _is_whole(path: str, num_images: int) -> bool:
    """Whether an earlier run wrote this shard; its records are renamed last."""
    beside = _records_path(path)
    return (
        os.path.isfile(path)
        and os.path.isfile(beside)
        and len(np.load(beside, allow_pickle=False)) == num_images
    )


def _entry(path: str, num_images: int) -> Shard:
    return Shard(
        file=os.path.basename(path),
        images=num_images,
        bytes=os.path.getsize(path),
        sha256=_sha256(path),
        records_sha256=_sha256(_records_path(path)),
    )


def _records_path(path: str) -> str:
    return os.path.splitext(path)[0] + ".npy"


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _writing(directory: str):
    """Turns a full disk or a forbidden folder into an InputError."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise InputError(
            f"the shards cannot be written ({reason}); make room or choose another folder, then "
            f"run the same command to go on. Received: {directory=}"
        ) from None
