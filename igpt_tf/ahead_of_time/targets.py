"""The accelerators to compile for, one JSON file each in `targets/`."""

import dataclasses
import os

from igpt_tf import files
from igpt_tf.errors import InputError

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "targets")


@dataclasses.dataclass(frozen=True)
class Target:
    """An accelerator.

    Attributes:
        name: Name of the device.
        memory_bytes: Memory of a device, as its driver reports it.
        bytes_per_second: Bandwidth of that memory.
        flops: Peak FLOP/s of dense products by `train.precision`.
        compiler: "cuda" or "tpu".
        sources: Where the numbers come from.
        description: For "cuda": what XLA asks a device about, by the names of its
            GpuDeviceInfoProto.
        compute_capability: For "cuda": (major, minor).
        accelerator_type: For "tpu": the name of a slice in Google Cloud.
        topologies: For "tpu": the compiler's name of a slice by the number of its chips, as text.
        clock_hz: For "tpu": cycles per second, in which the compiler estimates durations.
    """

    name: str
    memory_bytes: int
    bytes_per_second: float
    flops: dict[str, float]
    compiler: str
    sources: list[str]
    description: dict[str, int | float] | None = None
    compute_capability: tuple[int, int] | None = None
    accelerator_type: str | None = None
    topologies: dict[str, str] | None = None
    clock_hz: float | None = None

    @property
    def gpu_description(self) -> str:
        """XLA's GpuTargetConfigProto as text."""
        fields = " ".join(f"{name}: {value}" for name, value in self.description.items())
        major, minor = self.compute_capability
        return (
            f"gpu_device_info {{ {fields} cuda_compute_capability "
            f'{{ major: {major} minor: {minor} }} }} platform_name: "CUDA" '
            f'dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{self.name}"'
        )


def names() -> list[str]:
    """The names that `load` accepts."""
    return sorted(name.removesuffix(".json") for name in os.listdir(_FOLDER))


def load(name: str) -> Target:
    """Returns the target of that name, e.g. "h100". Raises: InputError: there is none."""
    if name not in names():
        raise InputError(f"unknown target; there are {', '.join(names())}. Received: target={name}")
    return files.read_json(
        os.path.join(_FOLDER, name + ".json"),
        description="a target",
        fix="install igpt_tf again",
        schema=Target,
    )
