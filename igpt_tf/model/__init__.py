"""The network: attention, block, `ImageGPT`. Keras only, so it runs on every Keras backend."""

from igpt_tf.model.classifier import Classifier
from igpt_tf.model.image_gpt import ImageGPT, abstract_model, build_model

__all__ = ["Classifier", "ImageGPT", "abstract_model", "build_model"]
