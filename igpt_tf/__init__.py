"""Image GPT ("Generative Pretraining from Pixels", Chen et al. 2020) in TensorFlow and Keras."""

__version__ = "0.1.0"
