"""Where a run runs: one device, several of one host, several hosts, a TPU slice."""

from collections.abc import Callable

import gin
import tensorflow as tf

from igpt_tf.errors import InputError


@gin.register
def default_strategy() -> tf.distribute.Strategy:
    """The first accelerator, or the CPU."""
    return tf.distribute.get_strategy()


@gin.register
def mirrored_strategy(*, devices: tuple[str, ...] | None = None) -> tf.distribute.Strategy:
    """All accelerators of this host, or the named ones, for example ('GPU:0', 'GPU:1').

    Raises:
        InputError: A device does not exist.
    """
    try:
        return tf.distribute.MirroredStrategy(devices)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"these devices cannot be used together: {error} Received: devices={devices}"
        ) from None


@gin.register
def tpu_strategy(*, address: str = "local") -> tf.distribute.Strategy:
    """A TPU slice.

    Args:
        address: 'local' on a TPU VM, else the name or grpc:// address of the TPU.

    Raises:
        InputError: No TPU answers at the address.
    """
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"no TPU answers ({type(error).__name__}). Received: address={address}"
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def has_accelerator() -> bool:
    """Whether a GPU or TPU is at hand."""
    return bool(tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"))


def distribute(
    strategy: tf.distribute.Strategy, build: Callable[[tuple[int, int]], tf.data.Dataset]
):
    """Feeds each replica its share of every global batch.

    Args:
        strategy: The strategy in force.
        build: Takes (shard, num_shards) and returns that shard's batches, one shard a host.

    Returns:
        An iterable of batches for `strategy.run`.

    Raises:
        InputError: The hosts' share of a batch does not divide over their replicas.
    """
    if strategy.num_replicas_in_sync == 1:
        return build((0, 1))

    def host_batches(context):
        shard = (context.input_pipeline_id, context.num_input_pipelines)
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        return _split_batches(build(shard), replicas)

    return strategy.distribute_datasets_from_function(host_batches)


def check_batch_size(strategy: tf.distribute.Strategy, batch_size: int, accumulation: int) -> None:
    """Raises: InputError unless the global batch cuts evenly into replicas and their parts."""
    replicas = strategy.num_replicas_in_sync
    if min(batch_size, accumulation) < 1 or batch_size % (replicas * accumulation):
        raise InputError(
            "the global batch must be a positive multiple of replicas x accumulation. Received: "
            f"train.batch_size={batch_size}, replicas={replicas}, accumulation={accumulation}"
        )


def _split_batches(dataset, parts):
    """Cuts each batch into `parts` consecutive ones."""
    return dataset.map(
        lambda batch: {
            name: tf.reshape(x, (parts, x.shape[0] // parts, *x.shape[1:]))
            for name, x in batch.items()
        },
        deterministic=True,
    ).unbatch()
