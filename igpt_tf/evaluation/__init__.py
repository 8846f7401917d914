"""What a pretrained model is worth: features, probes, scores and pictures, from its SavedModel.

Importing the room registers with gin what the tools' bindings may name, before gin reads them.
"""

import igpt_tf.data
import igpt_tf.evaluation.probe
import igpt_tf.model
import igpt_tf.palette  # noqa: F401
