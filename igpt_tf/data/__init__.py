"""Data: sources of images, and the input pipeline, whose batches are functions of (seed, step).

Importing the package registers every source and augmentation with gin.
"""

from igpt_tf.data.augmentation import flip, reflect_pad_crop, shift
from igpt_tf.data.cifar import cifar10, cifar100
from igpt_tf.data.decoding import decode_image, load_images
from igpt_tf.data.digits import digits
from igpt_tf.data.examples import ArrayExamples, Examples, FileExamples
from igpt_tf.data.idx import fashion_mnist, mnist
from igpt_tf.data.image_folder import image_folder
from igpt_tf.data.input_pipeline import InputPipeline, batches, evaluation_batches, iterate
from igpt_tf.data.mixture import mixture
from igpt_tf.data.npz import npz
from igpt_tf.data.sources import Source, heldout_split, register, source_from_description
from igpt_tf.data.tfds import tfds_dataset
from igpt_tf.data.tfrecords import tfrecords

__all__ = [
    "ArrayExamples",
    "Examples",
    "FileExamples",
    "InputPipeline",
    "Source",
    "batches",
    "cifar10",
    "cifar100",
    "decode_image",
    "digits",
    "evaluation_batches",
    "fashion_mnist",
    "flip",
    "heldout_split",
    "image_folder",
    "iterate",
    "load_images",
    "mixture",
    "mnist",
    "npz",
    "reflect_pad_crop",
    "register",
    "shift",
    "source_from_description",
    "tfds_dataset",
    "tfrecords",
]
