"""The training step of a TensorFlow run as one HLO program: forward, backward and Adam.

The network, its objective and its gradients are those of `training/trainer.py`. Two things differ
from the step of a run, so that models of any depth compile in minutes and without storage:

* The blocks run in a loop over stacked weights, float32[L,...], instead of one after another. A
  loop holds one copy of a block; the operations of a block are the same.
* The update is part of the program, written out, and state is donated: new weights and moments
  overwrite the old ones, as TensorFlow's update of variables does.
"""

import dataclasses

import keras
import tensorflow as tf

from igpt_tf.ahead_of_time import adam, compilers
from igpt_tf.ahead_of_time.targets import Target
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Objective


@dataclasses.dataclass(frozen=True)
class Program:
    """A program before it is compiled for a device.

    Attributes:
        hlo: Serialised HloModuleProto.
        donated: Pairs (argument, result) that share memory.
    """

    hlo: bytes
    donated: tuple[tuple[int, int], ...]


def compile_step(
    target: Target,
    model: ImageGPT,
    objective: Objective,
    batch_size: int,
    microbatches: int = 1,
) -> compilers.Compiled:
    """Compiles a training step for one device. Raises: DoesNotFit."""
    program = training_program(model, objective, batch_size, microbatches)
    return compilers.compile_hlo(target, program.hlo, program.donated)


def training_program(
    model: ImageGPT,
    objective: Objective,
    batch_size: int,
    microbatches: int = 1,
    *,
    scan: bool = True,
) -> Program:
    """Traces a training step.

    Args:
        model: An `abstract_model`.
        objective: The objective.
        batch_size: Images per step.
        microbatches: Equal parts of the batch, whose gradients are added one after another.
        scan: Whether the blocks run in a loop; otherwise the program holds each of them.

    Returns:
        A program (inputs of a batch, learning rate, weights, first moments, second moments) ->
        (loss, weights, first moments, second moments).
    """
    length = model.sequence_length
    inputs = {"tokens": tf.TensorSpec((batch_size, length), tf.int32)}
    drawn = objective.random_inputs(seed=0, step=0, batch_size=batch_size, sequence_length=length)
    inputs |= {name: tf.TensorSpec(x.shape, x.dtype) for name, x in drawn.items()}
    others, stacks = _weights(model, scan)
    shapes = [tuple(weight.shape) for weight in others]
    shapes += [(model.num_layers, *weight.shape) for weight in stacks]
    state = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    names, count = list(inputs), len(state)

    def step(*tensors):
        batch = dict(zip(names, tensors, strict=False))
        rate, *tensors = tensors[len(names) :]
        weights, means, squares = (tensors[i * count : (i + 1) * count] for i in range(3))
        loss, gradients = _accumulate(
            lambda part: _loss_and_gradients(model, objective, part, others, stacks, weights),
            batch,
            weights,
            microbatches,
        )
        updated = [
            adam.update(rate, *one) for one in zip(weights, means, squares, gradients, strict=True)
        ]
        return loss, *(x for column in zip(*updated, strict=True) for x in column)

    specs = [*inputs.values(), tf.TensorSpec((), tf.float32), *state * 3]
    hlo = compilers.trace_hlo(step, specs)
    first = len(names) + 1
    donated = tuple((first + i, 1 + i) for i in range(3 * count))
    return Program(hlo, donated)


def _accumulate(loss_and_gradients, batch, weights, microbatches):
    """Mean loss and gradients of equal parts of a batch, in a loop."""
    if microbatches == 1:
        return loss_and_gradients(batch)
    parts = {name: tf.reshape(x, (microbatches, -1, *x.shape[1:])) for name, x in batch.items()}

    def add(index, *sums):
        loss, gradients = loss_and_gradients({name: x[index] for name, x in parts.items()})
        return index + 1, *(a + b for a, b in zip(sums, (loss, *gradients), strict=True))

    _, *sums = tf.while_loop(
        lambda index, *_: index < microbatches,
        add,
        (tf.constant(0), tf.zeros([]), *map(tf.zeros_like, weights)),
    )
    loss, *gradients = (x / microbatches for x in sums)
    return loss, gradients


def _weights(model, scan):
    """(weights that are arguments as they are, weights of a block that are arguments in stacks)."""
    if not scan:
        return model.trainable_variables, []
    in_blocks = {id(weight) for block in model.blocks for weight in block.weights}
    others = [weight for weight in model.trainable_variables if id(weight) not in in_blocks]
    return others, model.blocks[0].weights


def _loss_and_gradients(model, objective, batch, others, stacks, weights):
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(weights)
        values = list(zip(others, weights[: len(others)], strict=True))
        if stacks:
            model.block_runner = _loop(model, weights[len(others) :])
        else:
            model.block_runner = _one_after_another(model, values)
        try:
            with keras.StatelessScope(values, initialize_variables=False):
                tokens = batch["tokens"]
                rest = {name: x for name, x in batch.items() if name != "tokens"}
                loss = tf.reduce_mean(objective(model, tokens, **rest))
        finally:
            model.block_runner = None
    return loss, [tf.convert_to_tensor(x) for x in tape.gradient(loss, weights)]


def _block_function(model):
    """Function (h, *weights) -> h of a block; with `remat`, weights must be arguments."""
    first = model.blocks[0]

    def run(h, *weights):
        values = list(zip(first.weights, weights, strict=True))
        with keras.StatelessScope(values, initialize_variables=False):
            return first(h)

    return keras.remat(run) if model.remat else run


def _one_after_another(model, values):
    """A `block_runner` that runs each block on its tensors of `values`."""
    run, tensors = _block_function(model), {id(weight): tensor for weight, tensor in values}
    return lambda block, h: run(h, *(tensors[id(weight)] for weight in block.weights))


def _loop(model, stacks):
    """A `block_runner` that runs all blocks when the first is asked for, and none for the others.

    TensorFlow's own gradient of a loop would also store the weights of each iteration, cast and
    scaled, once more. Here a block is traced once, forward and backward; only what its backward
    pass takes from the activations is stored.
    """
    run, depth = _block_function(model), model.num_layers

    @tf.custom_gradient
    def scan(h, *stacks):
        traced = _TracedBlock(run, h, stacks)
        weights = [_unstack(x) for x in stacks]
        kept = [tf.TensorArray(x.dtype, depth, element_shape=x.shape) for x in traced.kept]

        def forward(index, h, kept):
            h, *new = traced.forward(h, [one.read(index) for one in weights])
            return index + 1, h, [one.write(index, x) for one, x in zip(kept, new, strict=True)]

        _, last, kept = tf.while_loop(
            lambda index, *_: index < depth, forward, (tf.constant(0), h, kept)
        )
        kept = [one.stack() for one in kept]

        def gradient(upstream):
            old = [_unstack(x) for x in kept]
            weights = [_unstack(x) for x in stacks]
            sums = [tf.TensorArray(x.dtype, depth, element_shape=x.shape[1:]) for x in stacks]

            def backward(count, upstream, sums):
                index = depth - 1 - count
                upstream, *new = traced.backward(
                    upstream, [one.read(index) for one in (*weights, *old)]
                )
                sums = [one.write(index, x) for one, x in zip(sums, new, strict=True)]
                return count + 1, upstream, sums

            _, below, sums = tf.while_loop(
                lambda count, *_: count < depth, backward, (tf.constant(0), upstream, sums)
            )
            return below, *(one.stack() for one in sums)

        return last, gradient

    return lambda block, h: scan(h, *stacks) if block is model.blocks[0] else h


def _unstack(stack):
    """A list of the L tensors of float[L,...] that can be read more than once."""
    shape = stack.shape[1:]
    return tf.TensorArray(
        stack.dtype, stack.shape[0], element_shape=shape, clear_after_read=False
    ).unstack(stack)


class _TracedBlock:
    """The forward and the backward pass of a block as one graph that is cut in two.

    Args:
        run: Function (h, *weights) -> h.
        h: float[B,T,D].
        stacks: Weights of all blocks, float32[L,...].

    Attributes:
        kept: Tensors of the graph that the forward pass keeps for the backward pass.
    """

    def __init__(self, run, h, stacks):
        num_forward = 0

        def both(h, upstream, *weights):
            nonlocal num_forward
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch((h, *weights))
                result = run(h, *weights)
            num_forward = len(tf.compat.v1.get_default_graph().get_operations())
            return result, *tape.gradient(result, (h, *weights), upstream)

        like_h = tf.TensorSpec(h.shape, h.dtype)
        of_block = [tf.TensorSpec(x.shape[1:], x.dtype) for x in stacks]
        traced = tf.function(both, autograph=False).get_concrete_function(like_h, like_h, *of_block)
        graph = traced.graph
        self._definition = graph.as_graph_def()
        inputs = {x.op.name for x in graph.inputs}  # placeholders, which no device can run
        nodes = [node for node in self._definition.node if node.name not in inputs]
        del self._definition.node[:]
        self._definition.node.extend(nodes)
        self._h, self._upstream, *self._weights = (x.name for x in graph.inputs)
        self._result, *self._gradients = (x.name for x in graph.outputs)
        forward = graph.get_operations()[:num_forward]
        from_h = _reachable(graph.inputs[0], forward)
        used = _taken(graph.outputs[1:], {op.name for op in forward})
        self.kept = [x for name, x in used.items() if name in from_h]

    def forward(self, h, weights):
        """The block's result and what its backward pass needs, [float[B,T,D], ...]."""
        inputs = dict(zip([self._h, self._upstream, *self._weights], [h, h, *weights], strict=True))
        return self._run(inputs, [self._result, *(x.name for x in self.kept)])

    def backward(self, upstream, values):
        """Gradients of h and the weights; `values` are the weights and what `forward` kept."""
        names = [*self._weights, *(x.name for x in self.kept)]
        inputs = {self._h: upstream, self._upstream: upstream}
        return self._run(inputs | dict(zip(names, values, strict=True)), self._gradients)

    def _run(self, inputs, results):
        # What the results do not need, XLA removes.
        return tf.graph_util.import_graph_def(
            self._definition, input_map=inputs, return_elements=results, name=""
        )


def _taken(gradients, forward: set[str]) -> dict:
    """{name: tensor} of what the `forward` operations compute and `gradients` need.

    Of a tensor and its other shapes, the backward pass computes all but the first again.
    """
    taken, seen, pending = {}, set(), list(gradients)
    while pending:
        tensor = pending.pop()
        if tensor.op.name not in forward:
            if tensor.op.name not in seen:
                seen.add(tensor.op.name)
                pending += tensor.op.inputs
            continue
        while tensor.op.type in ("Reshape", "Transpose", "Identity", "IdentityN"):
            tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
        taken[tensor.name] = tensor
    return taken


def _reachable(tensor, operations) -> set[str]:
    """Names of the tensors that `operations`, in order, compute from `tensor`, and its own."""
    names = {tensor.name}
    for op in operations:
        if any(x.name in names for x in op.inputs):
            names |= {x.name for x in op.outputs}
    return names
