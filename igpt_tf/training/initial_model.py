"""The pretrained model that a run starts from."""

import math

import numpy as np
import tensorflow as tf

from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Objective
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.load import SavedModel, StoredWeights
from igpt_tf.savedmodel.write import weight_name

_SIZES = ("vocabulary_size", "num_layers", "hidden_dim", "num_heads")


class InitialModel:
    """The weights of a SavedModel as the initial values of a run.

    The palette, the objective and the sizes must be those of the run. The image size may differ:
    the position embeddings are then interpolated.

    Args:
        path: The SavedModel's folder, or the folder of its numbered versions.

    Attributes:
        saved: `SavedModel`.
        description: {"path", "step"}, for the metadata of the run's own SavedModel.

    Raises:
        InputError: As `SavedModel`; or it is a fine-tuned model.

    Example:
        initial = InitialModel("runs/imagenet/export")
        initial.check(palette, objective, abstract_model(new_model))
        initial.assign_to(model)
    """

    def __init__(self, path: str):
        self.saved = SavedModel(path)
        metadata = self.saved.metadata
        self.description = {"path": path, "step": metadata["step"]}
        if metadata["task"]:
            raise InputError(
                "a run starts from a pretrained model, not from a fine-tuned one. "
                f"Received: train.initial_model={path}, task={metadata['task']['name']}"
            )
        self._weights = StoredWeights(self.saved.path)

    def check(self, palette: Palette, objective: Objective, model: ImageGPT) -> None:
        """Compares the palette, the objective and the sizes with those of a run.

        Args:
            palette: The run's palette.
            objective: The run's objective.
            model: The run's model; its weights are not used.

        Raises:
            InputError: Names the first difference and the binding to change.
        """
        path = self.description["path"]
        if palette.fingerprint != self.saved.palette.fingerprint:
            raise InputError(
                "the palette must be that of the initial model; set train.palette=@load_palette() "
                f'and load_palette.path="{path}". Received: palette of {len(palette)} colours, '
                f"fingerprint {palette.fingerprint}, where train.initial_model={path} has "
                f"{len(self.saved.palette)}, fingerprint {self.saved.palette.fingerprint}"
            )
        name = self.saved.metadata["objective"]["name"]
        if objective.name != name:
            raise InputError(
                f"the objective must be that of the initial model; set train.objective=@{name}(). "
                f"Received: objective {objective.name}, where train.initial_model={path} has {name}"
            )
        for size, before in self.saved.metadata["model"].items():
            now = model.architecture[size]
            if size in _SIZES and now != before:
                raise InputError(
                    "the sizes must be those of the initial model; set "
                    f"build_model.{size}={before}. Received: build_model.{size}={now}, where "
                    f"train.initial_model={path} has {before}"
                )

    def value(self, weight, image_size: tuple[int, int]) -> np.ndarray:
        """Initial value of a weight of a model of that image size.

        Raises:
            InputError: The stored value is missing, damaged, of the wrong shape or not finite.
        """
        before = self.saved.image_size
        if weight_name(weight) != "position_embedding" or tuple(image_size) == before:
            return self._weights.read(weight)
        stored = self._weights.read(weight, (math.prod(before), weight.shape[1]))
        return resize_positions(stored, before, image_size)

    def assign_to(self, model: ImageGPT) -> None:
        """Assigns every weight, one at a time. Raises: InputError: see `value`."""
        for weight in model.weights:
            weight.assign(self.value(weight, model.image_size))

    def summary(self, image_size: tuple[int, int]) -> str:
        """Where the weights come from, in one line."""
        (height, width), (new_height, new_width) = self.saved.image_size, image_size
        resized = ""
        if (height, width) != (new_height, new_width):
            resized = (
                f"; position embeddings interpolated from {height}x{width} to "
                f"{new_height}x{new_width}"
            )
        return (
            f"initial weights: {self.saved.path}, step {self.saved.metadata['step']:,}{resized}; "
            "new optimizer state"
        )


def resize_positions(
    embedding: np.ndarray, before: tuple[int, int], now: tuple[int, int]
) -> np.ndarray:
    """Interpolates position embeddings in two dimensions, bicubically.

    Args:
        embedding: float32[H*W,D], in raster order.
        before: (H, W).
        now: (h, w).

    Returns:
        float32[h*w,D].
    """
    grid = embedding.reshape(*before, -1)
    resized = tf.image.resize(grid, now, method="bicubic", antialias=True).numpy()
    return resized.reshape(math.prod(now), -1)
