"""Image GPT ("Generative Pretraining from Pixels", Chen et al. 2020) in TensorFlow and Keras.

    import igpt_tf

    pretrained = igpt_tf.load("runs/digits/export")
    images = igpt_tf.sample(pretrained, 16, seed=0)

The names in `__all__` are the public Python API. They are imported when they are first used, so
that `import igpt_tf` does not import TensorFlow.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "ImageGPT": "igpt_tf.model",
    "Palette": "igpt_tf.palette",
    "Pretrained": "igpt_tf.api",
    "SamplingParams": "igpt_tf.sampling.params",
    "complete": "igpt_tf.api",
    "features": "igpt_tf.api",
    "inpaint": "igpt_tf.api",
    "load": "igpt_tf.api",
    "sample": "igpt_tf.api",
    "score": "igpt_tf.api",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
