"""The devices of a sharded run as one DTensor mesh."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from igpt_tf.errors import InputError

_AXIS = "shard"  # the one axis of the mesh: batches and weights are split along it
# By default DTensor gathers by summing arrays of the whole size, zero outside the shard: twice the
# bytes, and additions.
_GATHER_DIRECTLY = "LOWER_DTENSOR_GATHER_TO_COLLECTIVE_GATHER_V2"


def create_mesh(device_type: str) -> dtensor.Mesh:
    """A mesh of all devices of that type of all processes, "CPU" or "GPU".

    Source: `tf.experimental.dtensor.initialize_accelerator_system`, whose variables DTENSOR_JOBS,
    DTENSOR_CLIENT_ID, DTENSOR_NUM_CLIENTS and DTENSOR_JOB_NAME describe the processes.
    """
    dtensor.initialize_accelerator_system(device_type)
    num_devices = dtensor.num_global_devices(device_type)
    return dtensor.create_distributed_mesh([(_AXIS, num_devices)], device_type=device_type)


def dtensor_variables(addresses: list[str], index: int) -> dict[str, str]:
    """Environment variables that describe a cluster to DTensor."""
    return {
        "DTENSOR_JOBS": ",".join(addresses),
        "DTENSOR_CLIENT_ID": str(index),
        "DTENSOR_NUM_CLIENTS": str(len(addresses)),
        "DTENSOR_JOB_NAME": "worker",
    }


class ShardedStrategy:
    """The devices of a sharded run, with the part of `tf.distribute.Strategy` that training uses.

    Args:
        mesh: DTensor mesh with one axis.

    Attributes:
        mesh: As given.
        num_replicas_in_sync: Number of devices N.
        worker_index: Index of this process; 0 is the chief.
        num_workers: Number of processes.
    """

    def __init__(self, mesh: dtensor.Mesh):
        self.mesh = mesh
        self.num_replicas_in_sync = mesh.size
        self.worker_index = dtensor.client_id()
        self.num_workers = dtensor.num_clients()
        os.environ[_GATHER_DIRECTLY] = "1"
        if not self._gathers_in_order():
            del os.environ[_GATHER_DIRECTLY]

    def _gathers_in_order(self) -> bool:
        """Whether the direct gather joins the shards in the order of the devices of the mesh.

        It orders them by the names of the devices, the sum does not depend on an order.
        """
        numbers = np.arange(self.mesh.size, dtype="float32")
        gathered = dtensor.relayout(self.shard(numbers), self.replicated(1))
        return np.array_equal(local_value(gathered).numpy(), numbers)

    def scope(self) -> contextlib.AbstractContextManager:
        """No scope is needed: variables are created by the trainer."""
        return contextlib.nullcontext()

    def any_worker(self, here: bool) -> bool:
        """Whether `here` is true in any process. All processes must call it at the same step."""
        flags = [tf.constant([float(here)]) for _ in range(self.mesh.num_local_devices())]
        total = tf.reduce_sum(dtensor.pack(flags, dtensor.Layout([_AXIS], self.mesh)))
        return bool(local_value(total) > 0)

    def gather_rows(self, row: np.ndarray) -> np.ndarray:
        """The rows float32[1,n] of all devices, float32[N,n]; each process passes its own."""
        rows = self.pack([tf.constant(row)] * self.mesh.num_local_devices(), axis=0)
        return local_value(dtensor.relayout(rows, self.replicated(2))).numpy()

    def distribute_datasets_from_function(self, build: Callable) -> Iterable[dict]:
        """Global batches as DTensors, split along their first axis.

        Args:
            build: Function (tf.distribute.InputContext) -> dataset of per-device batches.
        """
        context = tf.distribute.InputContext(
            num_input_pipelines=self.num_workers,
            input_pipeline_id=self.worker_index,
            num_replicas_in_sync=self.num_replicas_in_sync,
        )
        return _GlobalBatches(build(context), self)

    def replicated(self, rank: int) -> dtensor.Layout:
        """Layout of a tensor of which every device has a copy."""
        return dtensor.Layout.replicated(self.mesh, rank)

    def batch_layout(self, rank: int) -> dtensor.Layout:
        """Layout of a tensor that is split along its first axis."""
        return dtensor.Layout([_AXIS, *[dtensor.UNSHARDED] * (rank - 1)], self.mesh)

    def weight_layout(self, shape: tuple[int, ...]) -> dtensor.Layout:
        """Layout of a weight: split along the first axis that N divides, else replicated.

        Raises:
            InputError: N divides no axis of a matrix.
        """
        specs = [dtensor.UNSHARDED] * len(shape)
        for axis, size in enumerate(shape):
            if size % self.mesh.size == 0:
                specs[axis] = _AXIS
                return dtensor.Layout(specs, self.mesh)
        if len(shape) > 1:
            raise InputError(
                "the number of devices must divide an axis of every matrix; change "
                f"build_model.hidden_dim or the number of devices. Received: shape={tuple(shape)}, "
                f"devices={self.mesh.size}"
            )
        return dtensor.Layout(specs, self.mesh)

    def shard(self, value: np.ndarray) -> tf.Tensor:
        """Splits an array into its weight layout; every process passes the same array."""
        layout = self.weight_layout(value.shape)
        if layout.is_fully_replicated():
            return dtensor.copy_to_mesh(tf.constant(value), layout)
        axis = list(layout.sharding_specs).index(_AXIS)
        shards = np.split(value, self.mesh.size, axis=axis)
        first = self.worker_index * self.mesh.num_local_devices()
        local = shards[first : first + self.mesh.num_local_devices()]
        return dtensor.pack([tf.constant(shard) for shard in local], layout)

    def pack(self, parts: list[tf.Tensor], axis: int) -> tf.Tensor:
        """A DTensor split along `axis` from the tensors of the local devices."""
        specs = [dtensor.UNSHARDED] * parts[0].shape.rank
        specs[axis] = _AXIS
        return dtensor.pack(parts, dtensor.Layout(specs, self.mesh))

    def variable(self, value) -> dtensor.DVariable:
        """A replicated variable."""
        return dtensor.DVariable(dtensor.copy_to_mesh(tf.constant(value), self.replicated(0)))


class _GlobalBatches:
    """Packs the per-device batches of a dataset; can be iterated over repeatedly."""

    def __init__(self, dataset: tf.data.Dataset, strategy: ShardedStrategy):
        self._dataset = dataset
        self._strategy = strategy

    def __iter__(self) -> Iterator[dict]:
        num_devices = self._strategy.mesh.num_local_devices()
        parts = []
        for part in self._dataset:
            parts.append(part)
            if len(parts) == num_devices:
                yield {
                    name: self._strategy.pack([part[name] for part in parts], axis=0)
                    for name in parts[0]
                }
                parts = []


def local_value(tensor: tf.Tensor) -> tf.Tensor:
    """The copy of a replicated DTensor on the first local device, as an ordinary tensor."""
    return dtensor.unpack(tensor)[0]
