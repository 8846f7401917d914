"""The data room: sources of images, and the pipeline that makes batch = f(seed, step).

Importing the room registers every source and augmentation with gin.
"""

from igpt_tf.data.augmentation import flip, reflect_pad_crop, shift
from igpt_tf.data.cifar import cifar10, cifar100
from igpt_tf.data.digits import digits
from igpt_tf.data.examples import ArrayExamples, FileExamples
from igpt_tf.data.idx import fashion_mnist, mnist
from igpt_tf.data.image_folder import image_folder
from igpt_tf.data.input_pipeline import batches, evaluation_batches, iterate
from igpt_tf.data.mixture import mixture
from igpt_tf.data.npz import npz
from igpt_tf.data.sources import Source, source_from_description
from igpt_tf.data.tfds import tfds_dataset
from igpt_tf.data.tfrecords import tfrecords

__all__ = [
    "ArrayExamples",
    "FileExamples",
    "Source",
    "batches",
    "cifar10",
    "cifar100",
    "digits",
    "evaluation_batches",
    "fashion_mnist",
    "flip",
    "image_folder",
    "iterate",
    "mixture",
    "mnist",
    "npz",
    "reflect_pad_crop",
    "shift",
    "source_from_description",
    "tfds_dataset",
    "tfrecords",
]
