"""How many images at a time the memory is good for."""

from igpt_tf.errors import InputError
from igpt_tf.sampling import peak_bytes

_WANTED = 16  # more would paint little faster, and show progress less often
_SHARE = 0.8  # of what is available, for one batch


def painting_batch(config: dict, wanted: int | None, num_images: int, available: float) -> int:
    """Images to paint at a time.

    Args:
        config: The model's, as in its metadata.
        wanted: By the user; None to choose.
        num_images: To be painted in all.
        available: Bytes, see `runtime.available_memory`.

    Raises:
        InputError: So many do not fit into the memory, or not even one.
    """
    size = min(wanted or _WANTED, num_images)
    while size > 1 and wanted is None and peak_bytes(config, size) > _SHARE * available:
        size //= 2
    if peak_bytes(config, size) > _SHARE * available:
        raise InputError(
            f"painting {size} at a time needs {_gigabytes(peak_bytes(config, size))} and "
            f"{_gigabytes(available)} are free; choose a smaller batch_size, or a larger machine. "
            f"Received: batch_size={wanted}"
        )
    return size


def announcement(config: dict, size: int) -> str:
    """What a batch of that size will take, for people."""
    return f"{size} at a time, which takes at most {_gigabytes(peak_bytes(config, size))} of memory"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"
