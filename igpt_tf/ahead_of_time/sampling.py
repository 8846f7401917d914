"""The sampling of new images as one HLO program: the compiled loop over pixels of the sampler."""

import keras
import tensorflow as tf

from igpt_tf.ahead_of_time import compilers
from igpt_tf.ahead_of_time.targets import Target
from igpt_tf.model import ImageGPT
from igpt_tf.sampling.sampler import sample


def compile_sampling(target: Target, model: ImageGPT, num_images: int) -> compilers.Compiled:
    """Compiles `sampler.sample` for one device.

    Args:
        target: The device.
        model: A causal `abstract_model`.
        num_images: Images that are sampled together.

    Raises:
        InputError: The model is a masked one.
        DoesNotFit: The compiler refuses the program.
    """
    return compilers.compile_hlo(target, sampling_hlo(model, num_images), ())


def sampling_hlo(model: ImageGPT, num_images: int) -> bytes:
    """Traces plain sampling as a program (seed int32[], weights) -> tokens int32[B,T].

    Returns:
        Serialised HloModuleProto.
    """
    variables = model.trainable_variables

    def run(seed, *weights):
        values = list(zip(variables, weights, strict=True))
        with keras.StatelessScope(values, initialize_variables=False):
            return sample(model, num_images, seed=seed, xla=True)

    specs = [tf.TensorSpec(weight.shape, tf.float32) for weight in variables]
    return compilers.trace_hlo(run, [tf.TensorSpec((), tf.int32), *specs])
