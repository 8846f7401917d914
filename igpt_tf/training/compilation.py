"""How a training step is compiled and divided among CPU cores.

Nothing here changes what a step computes, only how fast and in how much memory:

* With an accelerator, or `step_options.jit_compile=True`, XLA compiles the whole forward and
  backward pass and divides the work itself.
* On CPUs the pass remains a TensorFlow graph, whose matrix products are faster than XLA's. There,
  (1) all blocks share one traced function; (2) XLA compiles chains of elementwise operations into
  single loops; (3) the batch is divided into independent branches, one per core, because cores
  that share an operation wait for each other; (4) each core's share is divided into microbatches
  that stay in its cache.

Measurements: docs/performance.md.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from igpt_tf import runtime
from igpt_tf.model import ImageGPT
from igpt_tf.model.gradients import elementwise_compiler
from igpt_tf.training import strategies

# Positions of a microbatch per core: never slower than the whole share, up to 3 % faster.
_POSITIONS_PER_CORE = 1024


class Compilation:
    """Compiles the functions of one training step.

    Args:
        network: The `ImageGPT` that the step runs.
        strategy: The strategy in force.
        batch_size: Global batch size.
        jit_compile: Whether XLA compiles the whole step. None: with an accelerator only.

    Attributes:
        num_microbatches: Number of microbatches per replica that suits the hardware.
    """

    def __init__(
        self,
        network: ImageGPT,
        strategy: tf.distribute.Strategy,
        *,
        batch_size: int,
        jit_compile: bool | None = None,
    ):
        self._jit_compile = runtime.has_accelerator() if jit_compile is None else jit_compile
        self._network = network
        self._block = None if self._jit_compile else shared_block_function(network)
        self._fuses = not self._jit_compile and fusion_is_faster(network)
        num_cores = runtime.num_parallel_ops() // strategies.local_replicas(strategy)
        self._num_branches = 1 if self._jit_compile else max(1, num_cores)
        self.num_microbatches = self._choose_microbatches(batch_size, strategy)

    def _choose_microbatches(self, batch_size: int, strategy: tf.distribute.Strategy) -> int:
        images_per_core, remainder = divmod(
            batch_size, strategy.num_replicas_in_sync * self._num_branches
        )
        if remainder or self._num_branches == 1:
            return 1
        positions = images_per_core * self._network.sequence_length
        return runtime.largest_divisor(images_per_core, positions // _POSITIONS_PER_CORE)

    def compile(self, function: Callable) -> Callable:
        """Returns a `tf.function` of `function`, compiled by XLA where that is faster."""
        return tf.function(function, autograph=False, jit_compile=self._jit_compile)

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Context in which the forward and the backward pass are traced."""
        runner = self._network.block_runner
        self._network.block_runner = self._block
        try:
            with (
                elementwise_compiler(compile_elementwise)
                if self._fuses
                else contextlib.nullcontext()
            ):
                yield
        finally:
            self._network.block_runner = runner

    def branches(self, batch: dict) -> list[dict]:
        """Splits a batch along its first axis into parts of near-equal size, one per core."""
        number = next(iter(batch.values())).shape[0]
        sizes = runtime.near_equal_sizes(number, self._num_branches)
        columns = {name: tf.split(x, sizes) for name, x in batch.items()}
        return [{name: parts[i] for name, parts in columns.items()} for i in range(len(sizes))]


def shared_block_function(network: ImageGPT) -> Callable:
    """One traced function that runs any block of a network: (block, h) -> h.

    The blocks differ in their weights only. The graph calls the function L times instead of
    holding L copies of a block: it is built in half the time and takes less memory, and a call
    frees what no later operation needs. Not for XLA, which inlines the calls or cannot compile
    them.
    """
    first = network.blocks[0]

    def run_with_weights(h, *weights):
        values = list(zip(first.weights, weights, strict=True))
        # By default, leaving the scope would initialise variables created before it without
        # storage.
        with keras.StatelessScope(values, initialize_variables=False):
            return first(h)

    # The weights must be arguments of the rematerialised function, or their gradients are lost.
    traced = tf.function(
        keras.remat(run_with_weights) if network.remat else run_with_weights,
        autograph=False,
        # Grappler would inline the calls, which restores the copies.
        experimental_attributes={"_noinline": True},
    )

    def run_block(block, h):
        return traced(h, *(tf.convert_to_tensor(weight.value) for weight in block.weights))

    return run_block


def fusion_is_faster(network: ImageGPT) -> bool:
    """Whether to compile elementwise chains of this network's step by XLA.

    Not for bfloat16, which XLA converts slowly on CPUs, nor where memory is short
    (`build_model.remat`): XLA's compiler takes about 50 MB.
    """
    is_float32_on_cpu = not runtime.has_accelerator() and network.compute_dtype == "float32"
    return is_float32_on_cpu and not network.remat and _has_xla()


@functools.cache
def compile_elementwise(function: Callable) -> Callable:
    """Compiles a function of tensors by XLA."""
    return tf.function(function, autograph=False, jit_compile=True)


def _has_xla() -> bool:
    """Whether this build of TensorFlow contains XLA for CPUs."""
    try:
        compile_elementwise(tf.identity)(tf.zeros([]))
    except tf.errors.OpError:
        return False
    return True
