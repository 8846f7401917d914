"""TFRecord shards: random access to data sets that do not fit into memory.

    index.json                     written last: the splits, with a checksum of every file
    train-00000-of-00012.tfrecord  `tf.train.Example`s: image (PNG bytes), label (if labelled)
    train-00000-of-00012.npy       int64[n,2]: the offset of each record, and its label or -1

Files are written atomically, so an interrupted `write_shards` continues after the last whole shard.
Other files in the folder, such as an unfinished download, are not read.
"""

import contextlib
import copy
import hashlib
import os
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from igpt_tf import files
from igpt_tf.data.examples import Examples
from igpt_tf.data.sources import Source, register
from igpt_tf.data.stateless_random import epoch_order
from igpt_tf.errors import InputError

INDEX = "index.json"
_UNFINISHED = "unfinished.json"
_VERSION = 1
_SPLITS = ("train", "valid", "test")
_FRAME_BYTES = 16  # length and checksums around a record
_READ_AHEAD = 16 * 2**10  # bytes read at once
_BATCH = 256  # records decoded at once by `arrays`
_ENCODED_TOGETHER = 1024  # images


class Shard(msgspec.Struct, forbid_unknown_fields=True):
    """One shard, as the index describes it.

    Attributes:
        file: Name of the TFRecord file; the offsets are in the .npy file beside it.
        images: Number of records.
        bytes: Size of the TFRecord file.
        sha256, records_sha256: Checksums of the two files.
    """

    file: str
    images: int
    bytes: int
    sha256: str
    records_sha256: str


class Plan(msgspec.Struct):
    """What is written: the source, and how it is cut into shards."""

    version: int
    source: dict
    image_size: tuple[int, int]
    class_names: list[str] | None
    images_per_shard: int


class Index(Plan):
    """The finished shards, `index.json`. `parts` holds "train", "valid" and perhaps "test"."""

    parts: dict[str, list[Shard]]


class RecordExamples:
    """Images in TFRecord shards, read when they are loaded; 16 bytes per image in memory.

    Args:
        directory: The folder of the shards.
        shards: Those of one split, in order.
        image_size: (H, W).
        labelled: Whether the labels of the records are class numbers.

    Attributes:
        labels, image_size, is_fixed: See `Examples`.

    Raises:
        InputError: A shard is missing or incomplete, or its offsets were changed.
    """

    is_fixed = True

    def __init__(self, directory: str, shards: Sequence[Shard], image_size, labelled: bool):
        self._directory = directory
        self._shards = tuple(shards)
        records = [_read_records(directory, shard) for shard in self._shards]
        self._shard_of = np.repeat(
            np.arange(len(records), dtype="int32"), [len(each) for each in records]
        )
        offsets, labels = np.concatenate(records).T
        self._offsets = np.ascontiguousarray(offsets)
        self.labels = labels.astype("int32") if labelled else None
        self.image_size = tuple(image_size)

    def __len__(self) -> int:
        return len(self._offsets)

    def order(self, positions: tf.Tensor, seed: int, shuffle: bool) -> tf.Tensor:
        return epoch_order(positions, len(self), seed, shuffle)

    def load(self, indices: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        del seeds
        with tf.init_scope(), tf.device("CPU:0"):  # too large for constants of a graph
            paths = tf.constant([os.fsencode(path) for path in self._paths()])
            shard_of, offsets = tf.constant(self._shard_of), tf.constant(self._offsets)

        def read(shard_and_offset):
            shard, offset = shard_and_offset
            return _decode_record(_record(tf.gather(paths, shard), offset), self.image_size)

        return tf.map_fn(
            tf.autograph.experimental.do_not_convert(read),
            (tf.gather(shard_of, indices), tf.gather(offsets, indices)),
            fn_output_signature=tf.TensorSpec([*self.image_size, 3], tf.uint8),
        )

    def take(self, indices: np.ndarray) -> "RecordExamples":
        taken = copy.copy(self)
        taken._shard_of, taken._offsets = self._shard_of[indices], self._offsets[indices]
        taken.labels = None if self.labels is None else self.labels[indices]
        return taken

    def centre_cropped(self) -> "RecordExamples":
        return self

    def without_labels(self) -> "RecordExamples":
        unlabelled = copy.copy(self)
        unlabelled.labels = None
        return unlabelled

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        load = tf.autograph.experimental.do_not_convert(lambda indices: self.load(indices, None))
        batches = tf.data.Dataset.range(len(self)).batch(_BATCH)
        batches = batches.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        images = np.empty((len(self), *self.image_size, 3), "uint8")
        start = 0
        try:
            with tqdm(total=len(self), desc="reading shards", delay=2, leave=False) as progress:
                for batch in batches.as_numpy_iterator():
                    images[start : start + len(batch)] = batch
                    start += len(batch)
                    progress.update(len(batch))
        except tf.errors.OpError:
            self.check()
            raise
        return images, self.labels

    def check(self, indices: np.ndarray | None = None) -> None:
        """Compares the checksums of the shards that hold the images at `indices`, or of all.

        Raises:
            InputError: Names the first shard that was changed, or cannot be decoded.
        """
        paths = self._paths()
        chosen = self._shard_of if indices is None else self._shard_of[indices]
        for number in tqdm(np.unique(chosen), desc="checking shards", delay=2, leave=False):
            _check_content(paths[number], self._shards[number])

    def fingerprint(self) -> str:
        """Hex digest of which records these are, and of the checksums in the index."""
        digest = hashlib.sha256(f"records {self.image_size}".encode())
        for shard in self._shards:
            digest.update(shard.sha256.encode())
        for places in (self._shard_of, self._offsets):
            digest.update(np.ascontiguousarray(places).data)
        return digest.hexdigest()

    def _paths(self) -> list[str]:
        return [os.path.join(self._directory, shard.file) for shard in self._shards]


def _record(path: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """string[]: the record that starts at byte `offset`; TensorFlow compares its checksum."""
    # The raw operation, for `byte_offsets`, which tf.data.TFRecordDataset does not have.
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[None],
        compression_type="",
        buffer_size=np.int64(_READ_AHEAD),
        byte_offsets=offset[None],
    )
    types = {"output_types": [tf.string], "output_shapes": [[]]}
    first = tf.raw_ops.TakeDataset(input_dataset=records, count=np.int64(1), **types)
    return tf.raw_ops.DatasetToSingleElement(dataset=first, **types)[0]


def _decode_record(record: tf.Tensor, image_size) -> tf.Tensor:
    """uint8[H,W,3]."""
    content = tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature([], "string")})
    return tf.ensure_shape(tf.io.decode_png(content["image"], channels=3), [*image_size, 3])


@register
def tfrecords(*, directory: str, verify: bool = False) -> Source:
    """Shards that `tools.make_tfrecords` wrote, with the splits of the source they were made from.

    Sizes and offsets are checked here, each record's own checksum when it is read.

    Args:
        directory: The folder with index.json.
        verify: Whether to read all shards now and compare their SHA-256.

    Raises:
        InputError: There are no shards, they are unfinished, or one is missing or damaged.
    """
    index = read_index(directory)
    labelled = index.class_names is not None
    splits = {
        split: RecordExamples(directory, shards, index.image_size, labelled)
        for split, shards in index.parts.items()
        if shards
    }
    if not {"train", "valid"} <= splits.keys():
        raise InputError(
            "the index lacks a training or a held-out split; make the shards again. "
            f"Received: {directory=}, splits={sorted(splits)}"
        )
    for split, examples in splits.items():
        num_classes = len(index.class_names) if labelled else 0
        if labelled and not 0 <= examples.labels.min() <= examples.labels.max() < num_classes:
            raise InputError(
                f"the labels of the split {split} are not those of the index's {num_classes} "
                f"classes; make the shards again. Received: {directory=}"
            )
        if verify:
            examples.check()
    names = tuple(index.class_names) if labelled else None
    return Source(splits["train"], splits["valid"], splits.get("test"), names)


def read_index(directory: str) -> Index:
    """Reads `index.json`. Raises: InputError."""
    path = os.path.join(directory, INDEX)
    if not os.path.exists(path):
        if os.path.exists(os.path.join(directory, _UNFINISHED)):
            raise InputError(
                "these shards are unfinished; run tools.make_tfrecords again with the same "
                f"arguments to finish them. Received: {directory=}"
            )
        raise InputError(
            "there are no shards in this folder (No such file or directory: index.json); make "
            f"them with tools.make_tfrecords. Received: {directory=}"
        )
    again = "it is damaged or not one; run tools.make_tfrecords into a new folder"
    index = files.read_json(path, description="the index of the shards", fix=again, schema=Index)
    if index.version != _VERSION:
        raise InputError(
            f"these shards have version {index.version}, not {_VERSION}; make them again. "
            f"Received: {path=}"
        )
    shards = [shard for split in index.parts.values() for shard in split]
    names_are_plain = all(os.path.basename(shard.file) == shard.file for shard in shards)
    sizes_are_possible = min(index.image_size) > 0 and all(
        shard.images > 0 and shard.bytes > 0 for shard in shards
    )
    if not names_are_plain or not sizes_are_possible or not index.parts.keys() <= set(_SPLITS):
        raise InputError(
            "the index of the shards names impossible files, sizes or splits; make the shards "
            f"again. Received: {path=}"
        )
    return index


def write_shards(source: Source, directory: str, *, images_per_shard: int, watch=iter) -> Index:
    """Writes a source as shards, or continues an interrupted call.

    Args:
        source: Every split is written in the order stored, as `arrays()` returns it.
        directory: New, or left by an interrupted call with the same arguments.
        images_per_shard: The largest number of images in a shard.
        watch: Wraps the list of shards, such as `tqdm`.

    Returns:
        The index.

    Raises:
        InputError: The folder holds something else or cannot be written, an image cannot be read,
            or the source has random crops.

    Example:
        write_shards(digits(), "data/shards", images_per_shard=1000)
    """
    splits = {split: getattr(source, split) for split in _SPLITS}
    splits = {split: examples for split, examples in splits.items() if examples is not None}
    if images_per_shard < 1:
        raise InputError(f"a shard must hold at least one image. Received: {images_per_shard=}")
    if not all(examples.is_fixed for examples in splits.values()):
        raise InputError(
            "random crops change each time an image is loaded, and a shard holds one of them; set "
            "image_folder.crop='centre'. Received: crop='random'"
        )
    plan = Plan(
        version=_VERSION,
        source=source.description,
        image_size=tuple(source.image_size),
        class_names=None if source.class_names is None else list(source.class_names),
        images_per_shard=images_per_shard,
    )
    with _explaining_write_errors(directory):
        os.makedirs(directory, exist_ok=True)
        if _is_finished(directory, plan):
            return read_index(directory)
        try:
            lock = files.lock(os.path.join(directory, ".lock"))
        except BlockingIOError:
            raise InputError(
                "another process is writing these shards; wait for it, or choose a new folder. "
                f"Received: {directory=}"
            ) from None
        with lock:
            _write_missing(plan, splits, directory, watch)
    return read_index(directory)


def _write_missing(plan: Plan, splits: dict[str, Examples], directory: str, watch) -> None:
    """Writes the shards that are not there, then the index; see `write_shards`."""
    files.write_json(os.path.join(directory, _UNFINISHED), msgspec.to_builtins(plan))
    shards = {split: [] for split in splits}
    for split, start, name in watch(_shard_names(splits, plan.images_per_shard)):
        rows = np.arange(start, min(start + plan.images_per_shard, len(splits[split])))
        path = os.path.join(directory, name)
        if not _is_whole(path, len(rows)):
            _write_shard(path, *splits[split].take(rows).arrays())
        shards[split].append(
            Shard(
                file=name,
                images=len(rows),
                bytes=os.path.getsize(path),
                sha256=_sha256(path),
                records_sha256=_sha256(_records_path(path)),
            )
        )
    index = {**msgspec.to_builtins(plan), "parts": msgspec.to_builtins(shards)}
    files.write_json(os.path.join(directory, INDEX), index)
    os.remove(os.path.join(directory, _UNFINISHED))


def _is_finished(directory: str, plan: Plan) -> bool:
    """Whether these shards are there. Raises InputError if the folder holds other ones."""
    for name in (INDEX, _UNFINISHED):
        path = os.path.join(directory, name)
        if not os.path.exists(path):
            continue
        again = "it is damaged; choose a new folder"
        found = files.read_json(path, description="the list of shards", fix=again, schema=Plan)
        ours, theirs = (msgspec.json.encode(each, order="sorted") for each in (plan, found))
        if ours != theirs:
            raise InputError(
                "this folder holds shards of another source or another size; choose a new one. "
                f"Received: {directory=}"
            )
        if name == INDEX:
            return True
    return False


def _shard_names(splits: dict[str, Examples], images_per_shard: int) -> list[tuple[str, int, str]]:
    """(split, first image, file name) of each shard."""
    names = []
    for split, examples in splits.items():
        starts = range(0, len(examples), images_per_shard)
        names += [
            (split, start, f"{split}-{number:05d}-of-{len(starts):05d}.tfrecord")
            for number, start in enumerate(starts)
        ]
    return names


def _write_shard(path: str, images: np.ndarray, labels: np.ndarray | None) -> None:
    if labels is None:
        labels = np.full(len(images), -1)
    records, offset = [], 0
    with files.atomic_write(path) as file, tf.io.TFRecordWriter(file.name) as writer:
        for label, content in zip(labels, _pngs(images), strict=True):
            record = _example(content, int(label))
            records.append((offset, label))
            offset += len(record) + _FRAME_BYTES
            writer.write(record)
    with files.atomic_write(_records_path(path)) as file:  # last: it marks the shard as whole
        np.save(file, np.array(records, "int64"))


def _pngs(images: np.ndarray) -> Iterator[bytes]:
    for start in range(0, len(images), _ENCODED_TOGETHER):
        yield from tf.io.encode_png(images[start : start + _ENCODED_TOGETHER]).numpy()


def _example(content: bytes, label: int) -> bytes:
    """A serialised tf.train.Example."""
    feature = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))}
    if label >= 0:
        feature["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def _is_whole(path: str, num_images: int) -> bool:
    """Whether an earlier call wrote this shard."""
    records = _records_path(path)
    return (
        os.path.isfile(path)
        and os.path.isfile(records)
        and len(np.load(records, allow_pickle=False)) == num_images
    )


def _read_records(directory: str, shard: Shard) -> np.ndarray:
    """int64[n,2]: the offset of each record, and its label or -1. Raises: InputError."""
    path = os.path.join(directory, shard.file)
    _check_size(path, shard)
    records_path = _records_path(path)
    try:
        if _sha256(records_path) != shard.records_sha256:
            raise InputError(_damaged("its checksum differs from the index", records_path))
        records = np.load(records_path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it is not an array"
        raise InputError(_damaged(reason, records_path)) from None
    is_right = isinstance(records, np.ndarray) and records.dtype == np.int64
    if not is_right or records.shape != (shard.images, 2):
        raise InputError(_damaged(f"the index lists {shard.images} images", records_path))
    offsets, labels = records.T
    if not 0 <= offsets.min() <= offsets.max() < shard.bytes or not -1 <= labels.min() < 2**31:
        raise InputError(_damaged("its offsets are not inside the shard", records_path))
    return records


def _check_size(path: str, shard: Shard) -> None:
    """Raises InputError if a shard is missing or incomplete."""
    if not os.path.isfile(path):
        raise InputError(_damaged("No such file", path))
    size = os.path.getsize(path)
    if size != shard.bytes:
        raise InputError(_damaged(f"{size} bytes, the index lists {shard.bytes}", path))


def _check_content(path: str, shard: Shard) -> None:
    """Raises InputError if a shard is not what was written; reads all of it."""
    _check_size(path, shard)
    if _sha256(path) != shard.sha256:
        raise InputError(_damaged("its checksum differs from the index", path))


def _damaged(reason: str | None, path: str) -> str:
    return (
        f"a shard is missing or damaged ({reason}); copy it again, or make the shards again with "
        f"tools.make_tfrecords. Received: {path=}"
    )


def _records_path(path: str) -> str:
    return os.path.splitext(path)[0] + ".npy"


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _explaining_write_errors(directory: str):
    """Turns a full disk or a folder without permission into an InputError."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise InputError(
            f"the shards cannot be written ({reason}); free space or choose another folder, then "
            f"run the same command to continue. Received: {directory=}"
        ) from None
