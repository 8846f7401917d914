"""A network whose blocks TensorFlow traces once for all of them."""

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from igpt_tf.model import ImageGPT


class OneTrace:
    """Runs the blocks of a model, which differ in their weights only, by one traced function.

    A graph then calls it L times instead of holding L copies of a block. It is made in half the
    time and takes less memory, and a call leaves behind nothing that no later one needs. Not for
    use under XLA, which compiles a call it cannot see into slowly or not at all.

    Args:
        model: An `ImageGPT`.
    """

    def __init__(self, model: ImageGPT):
        self._model = model
        self._traced = tf.function(
            _with_weights(model),
            autograph=False,
            # Graph optimisers would put the copies back.
            experimental_attributes={"_noinline": True},
        )

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Within it the model runs its blocks so."""
        self._model.block_runner = self._run
        try:
            yield
        finally:
            self._model.block_runner = None

    def _run(self, block, h):
        return self._traced(h, *(tf.convert_to_tensor(weight.value) for weight in block.weights))


def _with_weights(model) -> Callable:
    """The model's first block as a function of its input and all its weights."""
    first = model.blocks[0]

    def run(h, *weights):
        values = list(zip(first.weights, weights, strict=True))
        # Leaving a scope initialises what was made without storage before, unless told not to.
        with keras.StatelessScope(values, initialize_variables=False):
            return first(h)

    # Here the weights have to be arguments, or their gradients are lost.
    return keras.remat(run) if model.remat else run
