"""Where and with what a program runs: for whoever reads its numbers later."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys

import igpt_tf
from igpt_tf import cores

FILE = "environment.jsonl"


def append_to(folder: str) -> None:
    """Adds a line to the folder's `environment.jsonl`: a run may go on elsewhere, and says so."""
    line = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "versions": versions(),
        "hardware": hardware(),
    }
    with open(os.path.join(folder, FILE), "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def versions() -> dict[str, str]:
    """Of everything that decides a number."""
    packages = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    return {"igpt_tf": igpt_tf.__version__, **packages, "python": platform.python_version()}


def hardware() -> dict:
    """{"cpu", "cores", "memory_gb", "accelerators"}; None for what the system does not tell."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine() or None,
        "cores": cores.count(),
        "memory_gb": _memory_gb(),
        "accelerators": _accelerators(),
    }


def _memory_gb() -> float | None:
    kilobytes = _field("/proc/meminfo", "MemTotal")
    return round(int(kilobytes.split()[0]) / 1e6, 1) if kilobytes else None


def available_bytes(path: str = "/proc/meminfo") -> float:
    """Memory that programs may still take; infinite where the system does not say."""
    kilobytes = _field(path, "MemAvailable")
    return int(kilobytes.split()[0]) * 1024 if kilobytes else float("inf")


def _accelerators() -> list[str]:
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU") + tf.config.list_physical_devices("TPU")
    return [
        tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
        for device in devices
    ]


def _field(path: str, name: str) -> str | None:
    """The value of the first line "name: value" of a file of the system."""
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.split(":")[0].strip() == name:
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return None
