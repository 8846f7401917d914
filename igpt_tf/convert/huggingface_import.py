"""Import of Hugging Face ImageGPT folders. Does not need torch."""

import math
import os

import numpy as np
from safetensors import SafetensorError, safe_open

from igpt_tf import files
from igpt_tf.convert import huggingface_layout as layout
from igpt_tf.convert import imported_model
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.write import check_finite

_STEP = 0  # such a folder does not record how long its model was trained
_FIX = "download the folder again"
_LFS_POINTER = b"version https://git-lfs"
# Types whose values float32 represents exactly.
_DTYPES = ("F32", "F16", "BF16")


def import_huggingface(*, huggingface: str, workdir: str, palette: str | None = None) -> dict:
    """Imports a folder as a SavedModel.

    Args:
        huggingface: A folder that `save_pretrained` wrote.
        workdir: Folder of `export/0`, `palette.npy` and `import.json`.
        palette: Path of a palette to use instead of the folder's own.

    Returns:
        The content of `import.json`.

    Raises:
        InputError: The folder or the palette is damaged or that of another network, or the export
            exists.
    """
    folder = HuggingFaceFolder(huggingface)
    colours = Palette.load(palette) if palette else folder.palette()
    imported_model.check_palette_size(colours, folder.config["vocabulary_size"])
    imported_model.export_path(workdir, _STEP)
    return imported_model.write_imported(
        folder.load(), colours, workdir, step=_STEP, source=huggingface
    )


class HuggingFaceFolder:
    """A folder that `save_pretrained` wrote, opened and checked; `load` reads the weights.

    Args:
        folder: Holds `config.json`, `model.safetensors` (or several files and their index) and, for
            the palette, `preprocessor_config.json`.

    Attributes:
        config: The arguments of `ImageGPT`.

    Raises:
        InputError: A file is missing or damaged, the folder is that of another model, or a tensor
            is missing, unexpected, of the wrong shape or of a type that float32 does not represent.
    """

    def __init__(self, folder: str):
        self.folder = folder
        path = os.path.join(folder, layout.CONFIG_FILE)
        config = files.read_json(
            path,
            description=f"{layout.CONFIG_FILE} of the Hugging Face folder",
            fix=_FIX,
            schema=layout.Config,
        )
        layout.check_config(config, path)
        self._processor = self._read_processor()
        self.config = {
            "image_size": self._image_size(config.n_positions),
            "vocabulary_size": config.vocab_size - 1,
            "num_layers": config.n_layer,
            "hidden_dim": config.n_embd,
            "num_heads": config.n_head,
            "causal": True,
        }
        self._weights = _Weights(folder)
        found = {n: s for n, s in self._weights.shapes.items() if not layout.is_buffer(n)}
        _check_output_embedding(found, folder)
        imported_model.check_shapes(layout.shapes(self.config), found, folder)
        self._check_biases()

    def palette(self) -> Palette:
        """The palette of the folder's image processor. Raises: InputError: It has none."""
        path = os.path.join(self.folder, layout.PROCESSOR_FILE)
        if not self._processor.clusters:
            raise InputError(
                f"the folder has no palette; pass one with --palette. Received: path={path}"
            )
        try:
            return Palette(np.array(self._processor.clusters, "float32"))
        except InputError as error:
            raise InputError(f"{error}, path={path}") from None

    def load(self) -> ImageGPT:
        """Reads the weights, one variable at a time. Raises: InputError."""
        model = ImageGPT(**self.config)
        embedding = self._weights.read(layout.TOKEN_EMBEDDING)
        model.token_embedding.assign(embedding[:-1])
        model.sos.assign(embedding[-1])
        for name, variable in layout.variables(model):
            variable.assign(self._weights.read(name))
        return model

    def _read_processor(self) -> layout.Processor:
        path = os.path.join(self.folder, layout.PROCESSOR_FILE)
        if not os.path.isfile(path):
            return layout.Processor()
        return files.read_json(
            path,
            description=f"{layout.PROCESSOR_FILE} of the Hugging Face folder",
            fix=_FIX,
            schema=layout.Processor,
        )

    def _image_size(self, sequence_length: int) -> tuple[int, int]:
        """(H, W) from the image processor, else that of a square."""
        size = self._processor.size
        if isinstance(size, int):  # the side of a square, in the oldest releases
            size = {"height": size, "width": size}
        if not (isinstance(size, dict) and {"height", "width"} <= size.keys()):
            return imported_model.square_image_size(sequence_length, self.folder)
        sides = size["height"], size["width"]
        if not all(isinstance(side, int) for side in sides) or math.prod(sides) != sequence_length:
            raise InputError(
                f"{layout.PROCESSOR_FILE} and {layout.CONFIG_FILE} disagree on the number of "
                f"pixels. Received: size={size}, n_positions={sequence_length}"
            )
        return sides

    def _check_biases(self) -> None:
        """Raises: InputError: A bias is not zero; `ImageGPT` has none."""
        biases = filter(layout.is_bias, layout.shapes(self.config))
        used = [name for name in biases if self._weights.read(name).any()]
        if used:
            raise InputError(
                "Image GPT has no biases, and those of this folder are not zero (was it fine-tuned "
                f"elsewhere?): {', '.join(used)}. Received: path={self.folder}"
            )


class _Weights:
    """The tensors of a safetensors file, or of the files that an index names."""

    def __init__(self, folder: str):
        self._folder = folder
        indexed = _read_index(folder)
        names = sorted(set(indexed.values())) or [layout.WEIGHTS_FILE]
        opened = (_open(folder, name) for name in names)
        self._files = {name: safe for safe in opened for name in safe.keys()}  # noqa: SIM118
        _check_index(indexed, self._files, folder)
        self.shapes = {
            name: tuple(safe.get_slice(name).get_shape()) for name, safe in self._files.items()
        }

    def read(self, name: str) -> np.ndarray:
        """float32 of the tensor's shape. Raises: InputError: An unsupported type, or damaged."""
        dtype = self._files[name].get_slice(name).get_dtype()
        if dtype not in _DTYPES:
            raise InputError(
                "the weights must be float32, float16 or bfloat16. "
                f"Received: {name} of {dtype}, path={self._folder}"
            )
        try:
            value = self._files[name].get_tensor(name).astype("float32", copy=False)
        except SafetensorError as error:
            raise InputError(
                f"the weights {name} cannot be read ({error}); {_FIX}. "
                f"Received: path={self._folder}"
            ) from None
        check_finite(name, value, f"{_FIX}: {self._folder}")
        return value


def _read_index(folder: str) -> dict[str, str]:
    """Tensor -> file, for weights in several files; empty if there is no index."""
    path = os.path.join(folder, layout.INDEX_FILE)
    if not os.path.isfile(path):
        return {}
    index = files.read_json(
        path, description="the index of the weights", fix=_FIX, schema=layout.Index
    )
    outside = [name for name in index.weight_map.values() if os.path.basename(name) != name]
    if outside:
        raise InputError(
            f"the index of the weights names a file outside the folder ({outside[0]}); {_FIX}. "
            f"Received: {path}"
        )
    return index.weight_map


def _open(folder: str, name: str):
    """Opens a file of weights without reading them. Raises: InputError."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise InputError(f"the weights do not exist; {_how_to_get(name)}. Received: {path}")
    try:
        with open(path, "rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise InputError(
                    "the file is a Git LFS pointer, not the weights; run `git lfs pull` in the "
                    f"folder. Received: {path}"
                )
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"the safetensors file is incomplete or damaged ({error}); {_FIX}. Received: {path}"
        ) from None


def _how_to_get(name: str) -> str:
    if name != layout.WEIGHTS_FILE:
        return f"{layout.INDEX_FILE} names this file, download it too"
    return (
        "convert a folder that has only pytorch_model.bin with `from_pretrained` and "
        "`save_pretrained` of the transformers library"
    )


def _check_index(indexed: dict[str, str], found: dict, folder: str) -> None:
    """Raises: InputError: The index names tensors that no file holds."""
    missing = [f"{name} ({file})" for name, file in indexed.items() if name not in found]
    if missing:
        raise InputError(
            f"{layout.INDEX_FILE} names tensors that its files do not hold: {', '.join(missing)}; "
            f"{_FIX}. Received: path={folder}"
        )


def _check_output_embedding(found: imported_model.Shapes, folder: str) -> None:
    """Raises: InputError: The folder holds a model without its output matrix."""
    if layout.OUTPUT_EMBEDDING not in found:
        raise InputError(
            f"the folder has no {layout.OUTPUT_EMBEDDING}: it was saved from ImageGPTModel or "
            "ImageGPTForImageClassification, which cannot predict tokens; save "
            f"ImageGPTForCausalImageModeling instead. Received: path={folder}"
        )
