"""Painting with a model: samples, completions, fillings, with cached keys and values."""

from igpt_tf.sampling.cache import cache_bytes, peak_bytes
from igpt_tf.sampling.painting import complete, inpaint, sample
from igpt_tf.sampling.sampler import Sampler

__all__ = ["Sampler", "cache_bytes", "complete", "inpaint", "peak_bytes", "sample"]
