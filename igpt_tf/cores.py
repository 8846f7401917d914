"""The cores of a CPU: all at one operation, or each at operations of its own.

Cores that share an operation hand its tensors to and fro and wait for the slowest. Where a batch
can be cut into parts that nothing orders among each other, a core a part is quicker: of two cores,
a tenth less time for a training step, a fifth to a third less for painting.
"""

import os

_MOST_PARTS = 8  # each has its own gradients; more cores share operations


def count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_accelerator() -> bool:
    """Whether a GPU or TPU is at hand, which does the work instead."""
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"))


def separate() -> None:
    """Gives each operation so few threads that up to 8 run at the same time.

    For programs that cut their batches into parts, before TensorFlow's first operation.
    Nothing happens where there is a GPU or TPU or the user has set TF_NUM_INTRAOP_THREADS.
    """
    import tensorflow as tf

    accelerated = any(one.device_type != "CPU" for one in tf.config.list_physical_devices())
    if accelerated or "TF_NUM_INTRAOP_THREADS" in os.environ:
        return
    tf.config.threading.set_intra_op_parallelism_threads(-(-count() // _MOST_PARTS))


def at_once() -> int:
    """How many operations run at the same time with all the threads they can have."""
    import tensorflow as tf

    threads = tf.config.threading.get_intra_op_parallelism_threads()
    return max(1, count() // threads) if threads else 1


def like_parts(number: int, most: int) -> list[int]:
    """Sizes of at most `most` parts of so many things that differ by one at most."""
    parts = min(number, most)
    return [(number + place) // parts for place in range(parts)]


def equal_parts(number: int, most: int) -> int:
    """Into how many equal parts so many things can be cut, `most` at most and 1 at least."""
    return next(parts for parts in range(max(1, most), 0, -1) if number % parts == 0)
