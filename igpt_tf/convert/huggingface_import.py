"""A Hugging Face ImageGPT folder -> our network and palette. Needs no torch."""

import json
import math
import os

import numpy as np
from safetensors import SafetensorError, safe_open

from igpt_tf.convert import huggingface_layout as layout
from igpt_tf.convert import inventory
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette

_INDEX_FILE = f"{layout.WEIGHTS_FILE}.index.json"


class HuggingFaceFolder:
    """A folder that `save_pretrained` wrote, opened and checked; `load` reads the weights.

    Args:
        folder: Holds `config.json`, `model.safetensors` (or an index of several) and, for the
            palette, `preprocessor_config.json`.

    Attributes:
        config: The arguments of `ImageGPT`.

    Raises:
        InputError: A file is absent or broken, the folder is another model's, or a tensor is
            missing, left over, misshapen or of a type that float32 cannot hold.
    """

    def __init__(self, folder: str):
        self.folder = folder
        path = os.path.join(folder, layout.CONFIG_FILE)
        settings = _read_json(path)
        layout.check_function(settings, path)
        self._processor = self._read_processor()
        self.config = {
            "image_size": self._image_size(settings["n_positions"]),
            "vocabulary_size": settings["vocab_size"] - 1,
            "num_layers": settings["n_layer"],
            "hidden_dim": settings["n_embd"],
            "num_heads": settings["n_head"],
            "causal": True,
        }
        self._weights = _Weights(folder)
        found = {n: s for n, s in self._weights.shapes.items() if not layout.is_buffer(n)}
        _refuse_headless(found, folder)
        inventory.compare(layout.shapes(self.config), found, folder)
        self._refuse_biases()

    def palette(self) -> Palette:
        """The palette of the folder's image processor. Raises: InputError if it has none."""
        path = os.path.join(self.folder, layout.PROCESSOR_FILE)
        if not self._processor.get("clusters"):
            raise InputError(
                f"the folder has no palette; name one with --palette. Received: path={path}"
            )
        try:
            return Palette(np.array(self._processor["clusters"], "float32"))
        except InputError as error:
            raise InputError(f"{error}, path={path}") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"the clusters are no palette ({error}). Received: {path}") from None

    def load(self) -> ImageGPT:
        """Reads the weights, one variable at a time. Raises: InputError."""
        model = ImageGPT(**self.config)
        embedding = self._weights.read(layout.TOKEN_EMBEDDING)
        model.token_embedding.assign(embedding[:-1])
        model.sos.assign(embedding[-1])
        for name, variable in layout.variables(model):
            variable.assign(self._weights.read(name))
        return model

    def _read_processor(self) -> dict:
        path = os.path.join(self.folder, layout.PROCESSOR_FILE)
        return _read_json(path) if os.path.isfile(path) else {}

    def _image_size(self, sequence_length: int) -> tuple[int, int]:
        """(H, W) from the image processor, else a square."""
        size = self._processor.get("size")
        if isinstance(size, int):  # the oldest releases: the side of a square
            size = {"height": size, "width": size}
        if not (isinstance(size, dict) and {"height", "width"} <= size.keys()):
            return inventory.square_image(sequence_length, self.folder)
        sides = size["height"], size["width"]
        if not all(isinstance(side, int) for side in sides) or math.prod(sides) != sequence_length:
            raise InputError(
                f"{layout.PROCESSOR_FILE} and {layout.CONFIG_FILE} disagree on the number of "
                f"pixels. Received: size={size}, n_positions={sequence_length}"
            )
        return sides

    def _refuse_biases(self) -> None:
        """Our network has no biases, so it could not repeat what a non-zero one does."""
        biases = filter(layout.is_bias, layout.shapes(self.config))
        used = [name for name in biases if self._weights.read(name).any()]
        if used:
            raise InputError(
                "Image GPT has no biases, and this folder's are not zero (was it fine-tuned "
                f"elsewhere?): {', '.join(used)}. Received: path={self.folder}"
            )


class _Weights:
    """The tensors of one safetensors file, or of several that an index names."""

    def __init__(self, folder: str):
        promised = _read_index(folder)
        files = sorted(set(promised.values())) or [layout.WEIGHTS_FILE]
        opened = (_open(folder, file) for file in files)
        self._files = {name: safe for safe in opened for name in safe.keys()}  # noqa: SIM118
        _refuse_broken_promises(promised, self._files, folder)
        self.shapes = {
            name: tuple(safe.get_slice(name).get_shape()) for name, safe in self._files.items()
        }

    def read(self, name: str) -> np.ndarray:
        """float32 of the tensor's shape. Raises: InputError if its type is wider."""
        kind = self._files[name].get_slice(name).get_dtype()
        if kind not in ("F32", "F16"):
            raise InputError(f"the weights must be float32 or float16. Received: {name} of {kind}")
        return self._files[name].get_tensor(name).astype("float32", copy=False)


def _read_index(folder: str) -> dict[str, str]:
    """Tensor -> file, of weights in several files; empty without an index. Raises: InputError."""
    path = os.path.join(folder, _INDEX_FILE)
    if not os.path.isfile(path):
        return {}
    names = _read_json(path).get("weight_map")
    if not (isinstance(names, dict) and names and all(isinstance(f, str) for f in names.values())):
        raise InputError(f"the index names no files of weights. Received: {path}")
    return names


def _open(folder: str, name: str):
    """Opens a file of weights without reading them. Raises: InputError."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise InputError(f"the weights do not exist; {_how_to_get(name)}. Received: {path}")
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"not a whole safetensors file ({error}); fetch it again. Received: {path}"
        ) from None


def _how_to_get(name: str) -> str:
    if name != layout.WEIGHTS_FILE:
        return f"{_INDEX_FILE} names this file: fetch it too"
    return (
        f"a folder with pytorch_model.bin alone becomes one with {name} by `from_pretrained` and "
        "`save_pretrained` of the transformers library"
    )


def _refuse_broken_promises(promised: dict[str, str], found: dict, folder: str) -> None:
    """Raises: InputError if the index names tensors that no file holds."""
    absent = [f"{name} ({file})" for name, file in promised.items() if name not in found]
    if absent:
        raise InputError(
            f"{_INDEX_FILE} names tensors that its files do not hold: {', '.join(absent)}; fetch "
            f"them again. Received: path={folder}"
        )


def _read_json(path: str) -> dict:
    """A JSON object. Raises: InputError."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise InputError(
            f"not a Hugging Face folder ({error.strerror}). Received: {path}"
        ) from None
    except ValueError as error:
        raise InputError(f"not a JSON file ({error}). Received: {path}") from None
    if not isinstance(content, dict):
        raise InputError(f"not a JSON object. Received: {path}")
    return content


def _refuse_headless(found: inventory.Shapes, folder: str) -> None:
    """Raises: InputError if the folder holds the body of a model without its output matrix."""
    if layout.OUTPUT_EMBEDDING not in found:
        raise InputError(
            f"the folder has no {layout.OUTPUT_EMBEDDING}: it was saved from ImageGPTModel or "
            "ImageGPTForImageClassification, which cannot predict tokens; save "
            f"ImageGPTForCausalImageModeling instead. Received: path={folder}"
        )
