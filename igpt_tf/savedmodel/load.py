"""SavedModels back in: for the tools as signatures, for further training as a live model."""

import functools
import os

from igpt_tf.errors import InputError, one_line
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.metadata import PALETTE, find, read_metadata

# What Python raises while it builds a model from a file that is cut short or altered.
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
    """One of our SavedModels, opened; the network itself is read when first used.

    Args:
        path: The SavedModel's folder, or the folder of its numbered versions (the newest counts).

    Attributes:
        path: The SavedModel's own folder.
        metadata: dict, the content of `assets/metadata.json`.
        palette: `Palette`.
        image_size: (H, W).

    Raises:
        InputError: The folder does not exist, is not one of ours, is damaged or holds another's
            palette.
    """

    def __init__(self, path: str):
        self.path = find(path)
        self.metadata = read_metadata(self.path)
        self.palette = _palette(self.path, self.metadata.get("palette"))
        self.image_size = tuple(self.metadata["model"]["image_size"])

    @functools.cached_property
    def _loaded(self):
        import tensorflow as tf

        try:
            return tf.saved_model.load(self.path)
        except tf.errors.ResourceExhaustedError:
            raise  # the memory's fault, not the file's
        except (*_DAMAGED, tf.errors.OpError) as error:
            raise InputError(
                f"the SavedModel is damaged ({_one_line(error)}); export it again. "
                f"Received: path={self.path}"
            ) from None

    @property
    def signature_names(self) -> list[str]:
        """Names of all signatures."""
        return sorted(self._loaded.signatures)

    def signature(self, name: str):
        """The function of that name: named arrays in, dict of named NumPy arrays out.

        Raises:
            InputError: There is none; or, when it is called, an input is missing or refused.
        """
        if name not in self._loaded.signatures:
            raise InputError(
                f"this SavedModel has no such signature, only {', '.join(self.signature_names)}. "
                f"Received: signature={name}, path={self.path}"
            )
        return functools.partial(_call, name, self._loaded.signatures[name])


def _palette(folder: str, fingerprint: str | None) -> Palette:
    """The folder's palette. Raises: InputError unless it is the one of the metadata, if any."""
    path = os.path.join(folder, PALETTE)
    palette = Palette.load(path)
    if fingerprint not in (None, palette.fingerprint):
        raise InputError(
            "the SavedModel's palette is not the one it was made with; put that back or export it "
            f"again. Received: path={path}, fingerprint={palette.fingerprint}, {fingerprint} in "
            "its metadata"
        )
    return palette


def _call(name, function, **inputs):
    """Calls a signature with arrays, converted to its types."""
    import tensorflow as tf

    specs = function.structured_input_signature[1]
    if set(inputs) != set(specs):
        raise InputError(
            f"signature {name} takes {', '.join(sorted(specs))}. "
            f"Received: {', '.join(sorted(inputs))}"
        )
    try:
        tensors = {key: tf.convert_to_tensor(inputs[key], specs[key].dtype) for key in specs}
        return {key: value.numpy() for key, value in function(**tensors).items()}
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        raise InputError(f"signature {name} refused its inputs: {_one_line(error)}") from None


def _one_line(error) -> str:
    """What an error of TensorFlow says."""
    said = getattr(error, "message", None) or str(error)
    return one_line(said) or type(error).__name__


def load_model(path: str):
    """The live model behind a SavedModel.

    Args:
        path: As for `SavedModel`.

    Returns:
        (`ImageGPT` with exactly the written weights, `Palette`, metadata dict).

    Raises:
        InputError: The folder is not one of ours, or lacks a weight.
    """
    from igpt_tf.model import ImageGPT
    from igpt_tf.savedmodel import weights

    saved = SavedModel(path)
    model = ImageGPT(**saved.metadata["model"])
    weights.read(saved.path, model)
    return model, saved.palette, saved.metadata
