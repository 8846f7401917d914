"""The SavedModel: written from a live model, opened by the tools and by any TensorFlow."""

from igpt_tf.export import load
from igpt_tf.export.load import SavedModel, load_model
from igpt_tf.export.write import write, write_classifier

__all__ = ["SavedModel", "load", "load_model", "write", "write_classifier"]
