"""Peak speed of the devices, by which the speed of a run is judged."""

import tensorflow as tf

from igpt_tf.model import ImageGPT
from igpt_tf.training.plan import flops_per_image

# Beginning of the device's name -> FLOP/s of dense products in (bfloat16, TensorFloat-32), the
# second of which TensorFlow uses for float32. The first match counts. Source: NVIDIA's data sheets
# of the A100 (nvidia-a100-datasheet-us-nvidia-1758950), the H100 and the H200; the latter two state
# twice these numbers, for sparse products.
_PEAK_FLOPS = {
    "NVIDIA H200 NVL": (835e12, 417e12),
    "NVIDIA H200": (989e12, 494e12),
    "NVIDIA H100 PCIe": (756e12, 378e12),
    "NVIDIA H100 NVL": (835e12, 417e12),
    "NVIDIA H100": (989e12, 494e12),
    "NVIDIA A100": (312e12, 156e12),
}


def peak_images_per_second(model: ImageGPT, precision: str, num_devices: int) -> float | None:
    """Images per second of training if every device computed at its peak.

    Args:
        model: The model; an `abstract_model` suffices.
        precision: "float32" or "mixed_bfloat16".
        num_devices: Number of equal devices.

    Returns:
        None if the peak is not known: on CPUs, TPUs and GPUs outside the table.
    """
    peak = peak_flops(_device_name(), precision)
    return peak and num_devices * peak / flops_per_image(model, remat=False)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak FLOP/s of a device by its name, None if it is not known."""
    for name, (bfloat16, tensor_float32) in _PEAK_FLOPS.items():
        if device_name.startswith(name):
            return bfloat16 if precision == "mixed_bfloat16" else tensor_float32
    return None


def _device_name() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "") if gpus else ""
