"""Loads SavedModels: their signatures for the tools, or the live model for further training."""

import functools
import os

import gin
import numpy as np

from igpt_tf import files
from igpt_tf.errors import InputError, one_line
from igpt_tf.palette import Palette
from igpt_tf.savedmodel import shipped, spec
from igpt_tf.savedmodel.metadata import PALETTE, find, read_metadata

# What Python raises while TensorFlow builds a model from a file that is cut short or altered.
_DAMAGED = (
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class SavedModel:
    """A SavedModel of this package. The network itself is read when it is first used.

    Args:
        path: The SavedModel's folder, the folder of its numbered versions (the highest counts), or
            the name of a model that comes with the package.

    Attributes:
        path: The SavedModel's own folder.
        metadata: Content of `assets/metadata.json`, see `metadata.read_metadata`.
        palette: `Palette`.
        image_size: (H, W).

    Raises:
        InputError: The folder does not exist, was not written by this package, is damaged or holds
            the palette of another model.

    Example:
        model = SavedModel("runs/digits/export")
        images = model.signature("sample")(num_images=4, seed=1)["images"]
    """

    def __init__(self, path: str):
        self.path = find(path)
        self.metadata = read_metadata(self.path)
        self.palette = _load_palette(self.path, self.metadata["palette"])
        self.image_size = tuple(self.metadata["model"]["image_size"])

    @functools.cached_property
    def _loaded(self):
        import tensorflow as tf

        try:
            return tf.saved_model.load(files.path_without_patterns(self.path))
        except tf.errors.ResourceExhaustedError:
            raise  # the memory's fault, not the file's
        except (*_DAMAGED, tf.errors.OpError) as error:
            raise InputError(
                f"the SavedModel is damaged ({_message(error)}); export it again. "
                f"Received: path={self.path}"
            ) from None

    @property
    def signature_names(self) -> list[str]:
        """Names of all signatures."""
        return sorted(self._loaded.signatures)

    def signature(self, name: str):
        """Returns the function of that name: named arrays in, dict of named NumPy arrays out.

        `temperature`, `top_k` and `top_p` may be left out.

        Raises:
            InputError: There is no such signature. When the function is called: an input is
                missing, unknown or refused.
        """
        if name not in self._loaded.signatures:
            raise InputError(
                f"this SavedModel has no such signature, only {', '.join(self.signature_names)}. "
                f"Received: signature={name}, path={self.path}"
            )
        return functools.partial(_call, name, self._loaded.signatures[name])


def load_model(path: str):
    """Loads the live model of a SavedModel.

    Args:
        path: As for `SavedModel`.

    Returns:
        (`ImageGPT` with exactly the stored weights, `Palette`, metadata dict).

    Raises:
        InputError: As `SavedModel`; or a weight is missing, damaged, of the wrong shape or not
            finite.
    """
    from igpt_tf.model import ImageGPT

    saved = SavedModel(path)
    model = ImageGPT(**saved.metadata["model"])
    stored = StoredWeights(saved.path)
    for weight in model.weights:
        weight.assign(stored.read(weight))
    return model, saved.palette, saved.metadata


class StoredWeights:
    """The weights of a SavedModel, read one at a time.

    Args:
        path: The SavedModel's own folder.

    Raises:
        InputError: The file of the weights is missing or damaged.
    """

    def __init__(self, path: str):
        import tensorflow as tf

        self.path = path
        folder = files.path_without_patterns(path)
        try:
            self._reader = tf.train.load_checkpoint(os.path.join(folder, "variables", "variables"))
        except (ValueError, tf.errors.OpError) as error:
            raise InputError(
                f"the SavedModel's weights cannot be read ({type(error).__name__}); export it "
                f"again. Received: path={path}"
            ) from None

    def read(self, weight, shape: tuple[int, ...] | None = None):
        """Reads the stored value of a weight.

        Args:
            weight: Keras variable of the model.
            shape: Shape of the stored value; that of the variable if None.

        Returns:
            NumPy array of that shape.

        Raises:
            InputError: The value is missing, damaged, of the wrong shape or not finite.
        """
        import tensorflow as tf

        from igpt_tf.savedmodel.write import check_finite, weight_key, weight_name

        name, shape = weight_name(weight), tuple(shape or weight.shape)
        if not self._reader.has_tensor(weight_key(weight)):
            raise InputError(f"the SavedModel lacks the weight {name}. Received: path={self.path}")
        try:
            value = self._reader.get_tensor(weight_key(weight))
        except (RuntimeError, IndexError, tf.errors.OpError):
            raise InputError(
                f"the SavedModel's weight {name} is damaged; export it again. "
                f"Received: path={self.path}"
            ) from None
        if value.shape != shape:
            raise InputError(
                f"the weight {name} does not have the shape {shape} of the metadata's model. "
                f"Received: shape={value.shape}, path={self.path}"
            )
        check_finite(name, value, f"export {self.path} again")
        return value


@gin.register
def load_palette(*, path: str) -> Palette:
    """Loads a palette from a file, or that of a pretrained model.

    Args:
        path: A `.npy` file, or a SavedModel as in `SavedModel`.

    Raises:
        InputError: There is no such file or SavedModel, or it is damaged.

    Example:
        palette = load_palette(path="cifar10")
    """
    if os.path.isdir(path) or (path in shipped.MODELS and not os.path.exists(path)):
        return SavedModel(path).palette
    return Palette.load(path)


def _load_palette(folder: str, fingerprint: str) -> Palette:
    """Loads the folder's palette. Raises: InputError unless it has the metadata's fingerprint."""
    path = os.path.join(folder, PALETTE)
    palette = Palette.load(path)
    if fingerprint != palette.fingerprint:
        raise InputError(
            "the SavedModel's palette is not the one it was written with; restore the file or "
            f"export the model again. Received: path={path}, fingerprint={palette.fingerprint}, "
            f"in the metadata {fingerprint}"
        )
    return palette


def _call(name: str, function, **inputs) -> dict:
    """Calls a signature with arrays, converted to its types."""
    import tensorflow as tf

    specs = function.structured_input_signature[1]
    defaults = {
        key: spec.default_value(key)
        for key, tensor in getattr(spec.SIGNATURES.get(name), "inputs", {}).items()
        if tensor.optional
    }
    inputs = {**defaults, **inputs}
    if set(inputs) != set(specs):
        raise InputError(
            f"signature {name} takes {', '.join(sorted(specs))}. "
            f"Received: {', '.join(sorted(inputs))}"
        )
    for key, tensor in specs.items():
        _check_type(name, key, inputs[key], tensor.dtype)
    try:
        tensors = {key: tf.convert_to_tensor(inputs[key], specs[key].dtype) for key in specs}
        return {key: value.numpy() for key, value in function(**tensors).items()}
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        raise InputError(f"signature {name} refused its inputs: {_message(error)}") from None


def _check_type(name: str, key: str, value, dtype) -> None:
    """Raises InputError if a value would be cut to the type: TensorFlow truncates arrays."""
    found = np.asarray(value).dtype
    if found.kind in "biufc" and not np.can_cast(found, dtype.as_numpy_dtype, "same_kind"):
        raise InputError(
            f"signature {name} takes {key} as {dtype.name}. Received: {key} of the type {found}"
        )


def _message(error: Exception) -> str:
    """An error of TensorFlow in one line."""
    message = getattr(error, "message", None) or str(error)
    return one_line(message) or type(error).__name__
