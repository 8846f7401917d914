"""Import of OpenAI's published TF1 checkpoints, autoregressive and masked (BERT)."""

import glob
import os
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from igpt_tf import files
from igpt_tf.convert import imported_model
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.write import check_finite

# Path components of the variables of optimizers.
_TRAINING_STATE = {
    "Adam",
    "Adam_1",
    "AdamWeightDecayOptimizer",
    "AdamWeightDecayOptimizer_1",
    "ExponentialMovingAverage",
    "_step",
    "adam_m",
    "adam_v",
    "beta1_power",
    "beta2_power",
    "global_step",
}
_HEAD = "clf"
_SCOPE = "model/"


def import_openai(*, checkpoint: str, palette: str, workdir: str) -> dict:
    """Imports a checkpoint as a SavedModel.

    Args:
        checkpoint: Checkpoint prefix, e.g. `model.ckpt-1000000`.
        palette: Path of the palette the model was trained with, `kmeans_centers.npy`.
        workdir: Folder of `export/STEP`, `palette.npy` and `import.json`.

    Returns:
        The content of `import.json`.

    Raises:
        InputError: The checkpoint or the palette is damaged or that of another network, or the
            export exists.
    """
    colours = Palette.load(palette)
    opened = OpenAICheckpoint(checkpoint)
    imported_model.check_palette_size(colours, opened.config["vocabulary_size"])
    imported_model.export_path(workdir, opened.step)
    return imported_model.write_imported(
        opened.load(),
        colours,
        workdir,
        step=opened.step,
        source=opened.path,
        ignored=opened.ignored,
    )


class OpenAICheckpoint:
    """A checkpoint of openai/image-gpt, opened and checked; `load` reads the weights.

    Depth, width, heads, context and vocabulary are inferred from the shapes of the variables. A
    checkpoint without `sos` is that of a masked model.

    Args:
        path: Checkpoint prefix, e.g. `model.ckpt-1000000` (with or without `.index`).

    Attributes:
        config: The arguments of `ImageGPT`.
        step: The training step in the file's name, 0 without one.
        ignored: Names of the variables that are not part of the network: the state of the
            optimizer and a classification head (`clf`).

    Raises:
        InputError: A file is missing or damaged; a variable is missing, unexpected or of another
            shape.

    Source: openai/image-gpt `src/model.py`.
    """

    def __init__(self, path: str):
        self.path = path.removesuffix(".index")
        self.step = int((re.findall(r"-(\d+)$", self.path) or [0])[0])
        _check_files(self.path)
        # TensorFlow takes the prefix for a pattern.
        folder, name = os.path.split(self.path)
        readable = os.path.join(files.path_without_patterns(folder or os.curdir), name)
        self._reader = self._guard(tf.train.load_checkpoint, readable)
        stored = self._reader.get_variable_to_shape_map()
        self._scope = _SCOPE if f"{_SCOPE}wte" in stored else ""
        self.ignored = sorted(filter(self._is_ignored, stored))
        found = {
            name.removeprefix(self._scope): tuple(shape)
            for name, shape in sorted(stored.items())
            if name not in self.ignored
        }
        self.config = _infer_config(found, self.path)
        imported_model.check_shapes(_shapes(self.config), found, self.path)
        self._check_dtypes()

    def load(self) -> ImageGPT:
        """Reads the weights, one variable at a time.

        Raises:
            InputError: A shard is truncated, its checksum is wrong, or a weight is not finite.
        """
        model = ImageGPT(**self.config)
        for variable, value in self._values(model):
            variable.assign(value)
        return model

    def _values(self, model: ImageGPT) -> Iterator[tuple]:
        """Yields (variable of `model`, float32 array of its shape)."""
        yield model.token_embedding, self._read("wte")
        yield model.position_embedding, self._read("wpe")
        yield model.output_embedding, self._read("wtet")
        if model.causal:
            yield model.sos, self._read("sos")
        for i, block in enumerate(model.blocks):
            yield block.attention_norm.scale, self._read(f"h{i}/ln_1/g")
            yield block.attention.qkv_kernel, self._read_qkv(f"h{i}/attn")
            # [heads, head_dim, D], summed over the first two: rows are head-major already.
            projection = self._read(f"h{i}/attn/c_proj")
            yield block.attention.output_kernel, projection.reshape(-1, model.hidden_dim)
            yield block.mlp_norm.scale, self._read(f"h{i}/ln_2/g")
            yield block.mlp.input_kernel, self._read(f"h{i}/mlp/c_fc/w")
            yield block.mlp.output_kernel, self._read(f"h{i}/mlp/c_proj/w")
        yield model.final_norm.scale, self._read("ln_f/g")

    def _read_qkv(self, scope: str) -> np.ndarray:
        """Three [heads, head_dim, D] matrices, summed over the last axis -> float32[D,3D]."""
        parts = [self._read(f"{scope}/{name}_proj") for name in "qkv"]
        return np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts]).T

    def _read(self, name: str) -> np.ndarray:
        value = self._guard(self._reader.get_tensor, self._scope + name)
        check_finite(name, value, f"download {self.path} again")
        return value

    def _guard(self, read, *arguments):
        """Calls `read`; errors of TensorFlow about the files become InputErrors."""
        try:
            return read(*arguments)
        except (tf.errors.OpError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"the checkpoint cannot be read, a file is incomplete or damaged ({reason}); "
                f"download it again. Received: path={self.path}"
            ) from None

    def _is_ignored(self, name: str) -> bool:
        parts = name.removeprefix(self._scope).split("/")
        return parts[0] == _HEAD or not _TRAINING_STATE.isdisjoint(parts)

    def _check_dtypes(self) -> None:
        dtypes = self._reader.get_variable_to_dtype_map()
        other = sorted(n for n, t in dtypes.items() if n not in self.ignored and t != tf.float32)
        if other:
            raise InputError(
                f"the weights must be float32. Received: {other[0]} of {dtypes[other[0]].name}, "
                f"path={self.path}"
            )


def _check_files(path: str) -> None:
    """Raises: InputError: Names the first file of the checkpoint that is missing."""
    shards = sorted(glob.glob(f"{glob.escape(path)}.data-*-of-*"))
    count = int(shards[0].rsplit("-", 1)[1]) if shards else 1
    names = [f"{path}.data-{i:05d}-of-{count:05d}" for i in range(count)]
    for name in (f"{path}.index", *names):
        if not os.path.isfile(name):
            raise InputError(
                "a file of the checkpoint does not exist; --checkpoint is the checkpoint prefix, "
                f"e.g. DIR/model.ckpt-1000000. Received: {name}"
            )


def _infer_config(found: imported_model.Shapes, path: str) -> dict:
    """The arguments of `ImageGPT`, inferred from names and shapes."""
    ranks = {"wte": 2, "wpe": 2, "h0/attn/q_proj": 3}
    absent = [name for name, rank in ranks.items() if len(found.get(name, ())) != rank]
    if absent:
        raise InputError(
            f"not an Image GPT checkpoint: it has no {', '.join(absent)} of the published "
            f"layout. Received: path={path}"
        )
    blocks = {name.split("/")[0] for name in found if re.match(r"h\d+/", name)}
    return {
        "image_size": imported_model.square_image_size(found["wpe"][0], path),
        "vocabulary_size": found["wte"][0],
        "num_layers": len(blocks),
        "hidden_dim": found["wte"][1],
        "num_heads": found["h0/attn/q_proj"][0],
        "causal": "sos" in found,
    }


def _shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every variable of the network, without the scope."""
    dim, heads = config["hidden_dim"], config["num_heads"]
    vocabulary, (height, width) = config["vocabulary_size"], config["image_size"]
    shapes = {"wte": (vocabulary, dim), "wpe": (height * width, dim), "wtet": (vocabulary, dim)}
    if config["causal"]:
        shapes["sos"] = (dim,)
    for i in range(config["num_layers"]):
        shapes[f"h{i}/ln_1/g"] = shapes[f"h{i}/ln_2/g"] = (dim,)
        for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
            shapes[f"h{i}/attn/{name}"] = (heads, dim // heads, dim)
        shapes[f"h{i}/mlp/c_fc/w"] = (dim, 4 * dim)
        shapes[f"h{i}/mlp/c_proj/w"] = (4 * dim, dim)
    return shapes | {"ln_f/g": (dim,)}
