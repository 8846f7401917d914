"""TFRecord shards as a source: random access to sets that memory does not hold."""

import copy
import hashlib
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from igpt_tf.data import shards as on_disk
from igpt_tf.data.shards import Shard
from igpt_tf.data.sources import Source, register
from igpt_tf.errors import InputError

_READ_AT_ONCE = 16 * 2**10  # bytes
_BATCH = 256


class RecordExamples:
    """Images in TFRecord shards, read when they are asked for; 16 bytes an image in memory.

    Args:
        directory: Of the shards.
        shards: One part's, in order.
        labelled: Whether the records' labels count.

    Attributes:
        labels: int32[N] or None.
        image_size: (H, W).

    Raises:
        InputError: A shard is missing or was cut, or its list of records was changed.
    """

    def __init__(self, directory: str, shards: Sequence[Shard], image_size, labelled: bool):
        self._directory = directory
        self._shards = tuple(shards)
        records = [on_disk.read_records(directory, shard) for shard in self._shards]
        self._shard_of = np.repeat(
            np.arange(len(records), dtype="int32"), [len(each) for each in records]
        )
        offsets, labels = np.concatenate(records).T
        self._offsets = np.ascontiguousarray(offsets)
        self.labels = labels.astype("int32") if labelled else None
        self.image_size = tuple(image_size)

    def __len__(self) -> int:
        return len(self._offsets)

    def load(self, indices: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """uint8[B,H,W,3] of `indices` int64[B]; `seeds` int32[B,2] change nothing here.

        TensorFlow seeks the record and verifies its checksum; no Python runs.
        """
        del seeds
        with tf.init_scope(), tf.device("CPU:0"):  # too large for constants of a graph
            paths = tf.constant(self._paths())
            shard_of, offsets = tf.constant(self._shard_of), tf.constant(self._offsets)
        return tf.map_fn(
            lambda place: self._decode(_record(*place)),
            (tf.gather(paths, tf.gather(shard_of, indices)), tf.gather(offsets, indices)),
            fn_output_signature=tf.TensorSpec([*self.image_size, 3], tf.uint8),
        )

    def take(self, indices: np.ndarray) -> "RecordExamples":
        """The examples at `indices` int[M]."""
        part = copy.copy(self)
        part._shard_of, part._offsets = self._shard_of[indices], self._offsets[indices]
        part.labels = None if self.labels is None else self.labels[indices]
        return part

    def centred(self) -> "RecordExamples":
        """Itself: images in shards are cropped for good."""
        return self

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(images uint8[N,H,W,3], labels int32[N] or None). Raises: InputError."""
        loaded = tf.data.Dataset.range(len(self)).batch(_BATCH)
        loaded = loaded.map(lambda i: self.load(i, None), num_parallel_calls=tf.data.AUTOTUNE)
        try:
            return np.concatenate(list(loaded.as_numpy_iterator())), self.labels
        except tf.errors.OpError:
            self.check()
            raise

    def check(self) -> None:
        """Reads every shard whole. Raises: InputError, naming the first that was changed."""
        paths = self._paths()
        for number in np.unique(self._shard_of):
            on_disk.check_content(paths[number], self._shards[number])

    def fingerprint(self) -> str:
        """Hex digest of which records these are, and of the shards by their noted SHA-256."""
        digest = hashlib.sha256(f"records {self.image_size}".encode())
        for shard in self._shards:
            digest.update(shard.sha256.encode())
        for places in (self._shard_of, self._offsets):
            digest.update(np.ascontiguousarray(places).data)
        return digest.hexdigest()

    def _paths(self) -> list[str]:
        return [os.path.join(self._directory, shard.file) for shard in self._shards]

    def _decode(self, record: tf.Tensor) -> tf.Tensor:
        content = tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature([], "string")})
        return tf.ensure_shape(
            tf.io.decode_png(content["image"], channels=3), [*self.image_size, 3]
        )


def _record(path: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """string[]: the record that starts at byte `offset`."""
    # Raw, for `byte_offsets`, which tf.data.TFRecordDataset does not have.
    behind = tf.raw_ops.TFRecordDatasetV2(
        filenames=path[None],
        compression_type="",
        buffer_size=np.int64(_READ_AT_ONCE),
        byte_offsets=offset[None],
    )
    kinds = {"output_types": [tf.string], "output_shapes": [[]]}
    first = tf.raw_ops.TakeDataset(input_dataset=behind, count=np.int64(1), **kinds)
    return tf.raw_ops.DatasetToSingleElement(dataset=first, **kinds)[0]


@register
def tfrecords(*, directory: str, verify: bool = False) -> Source:
    """Shards that `tools.make_tfrecords` wrote, with the split of the source they were made from.

    Sizes and the lists of records are checked here, each record's own checksum when it is read.

    Args:
        directory: The folder with index.json.
        verify: Whether to read all shards now and compare their SHA-256.

    Raises:
        InputError: No shards, unfinished ones, or one is missing or damaged.
    """
    index = on_disk.read_index(directory)
    class_names = index["class_names"]
    parts = {
        part: RecordExamples(directory, shards, index["image_size"], class_names is not None)
        for part, shards in index["parts"].items()
        if shards
    }
    if not {"train", "valid"} <= parts.keys():
        raise InputError(
            "the index lacks a training or a held-out part; make the shards again. "
            f"Received: {directory=}, parts={sorted(parts)}"
        )
    if verify:
        for examples in parts.values():
            examples.check()
    names = None if class_names is None else tuple(class_names)
    return Source(parts["train"], parts["valid"], parts.get("test"), names)
