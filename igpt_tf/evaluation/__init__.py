"""Measurements on SavedModels: features, linear probes, fine-tuning, scores and galleries.

Importing the package registers the data sources, augmentations and palettes that gin bindings of
the tools may name. A module of the package registers its own configurables: a tool imports the
function it runs, then calls `config.parse_flags()`.
"""

import igpt_tf.data
import igpt_tf.model
import igpt_tf.palette
import igpt_tf.savedmodel.load  # noqa: F401
