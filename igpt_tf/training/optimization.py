"""Adam with warm-up and cosine decay, and the moving average of the weights."""

import contextlib

import gin
import keras
import tensorflow as tf

from igpt_tf.errors import InputError

NOT_DECAYED = ("scale", "sos")  # gains of the norms and the first slot's vector


class OnePassAdam(keras.optimizers.Adam):
    """Keras' Adam by TensorFlow's own kernel: one operation per weight instead of a dozen."""

    def __init__(self, learning_rate=0.001, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self._rate = learning_rate

    def rate_at(self, step):
        """Learning rate of the step that follows `step` finished ones, int64[] -> float32[]."""
        return self._rate(step) if callable(self._rate) else tf.constant(self._rate)

    def decays(self, path: str) -> bool:
        """Whether weight decay applies to the variable of that path."""
        excluded = any(name in path for name in NOT_DECAYED)
        return self.weight_decay is not None and not excluded

    def update_step(self, gradient, variable, learning_rate):
        """Updates `variable`, a tf.Variable, by `gradient` of the same shape."""
        index = self._get_variable_index(variable)
        dtype = variable.dtype
        step = tf.cast(self.iterations + 1, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.cast(self.beta_1, dtype) ** step,
            beta2_power=tf.cast(self.beta_2, dtype) ** step,
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.cast(self.beta_1, dtype),
            beta2=tf.cast(self.beta_2, dtype),
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )


@gin.register
def build_optimizer(
    *,
    num_steps: int,
    steps_per_epoch: int,
    learning_rate: float,
    warmup_steps: int | None = None,
    beta_1: float = 0.9,
    beta_2: float = 0.95,
    epsilon: float = 1e-8,
    weight_decay: float | None = None,
    ema_momentum: float | None = None,
) -> keras.optimizers.Optimizer:
    """The paper's optimizer: Adam(0.9, 0.95), linear warm-up, cosine to zero, no weight decay.

    Args:
        num_steps: Length of the run in optimizer steps.
        steps_per_epoch: Length of one pass over the training images in optimizer steps.
        learning_rate: Peak learning rate.
        warmup_steps: Steps of linear warm-up, at most half of the run, so that a short trial of a
            run file needs no other setting. None: one epoch (the paper's), at most a tenth.
        beta_1: Decay of the gradient's mean.
        beta_2: Decay of the gradient's square; 0.999 gave loss spikes in the paper.
        epsilon: Adam's epsilon; the paper does not give it.
        weight_decay: AdamW's decoupled decay of the matrices; None, the paper's, is plain Adam.
        ema_momentum: Momentum of an exponential moving average of the weights, which
            `train.weights = "averaged"` evaluates and exports; None, the paper's, keeps none.

    Raises:
        InputError: `warmup_steps` is negative.

    Source: paper, section 3.3.
    """
    if warmup_steps is None:
        warmup_steps = min(steps_per_epoch, num_steps // 10)
    if warmup_steps < 0:
        raise InputError(f"warmup_steps must be 0 or more. Received: {warmup_steps=}")
    warmup_steps = min(warmup_steps, num_steps // 2)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else learning_rate,
        decay_steps=num_steps - warmup_steps,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    arguments = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    if ema_momentum is not None:
        arguments |= {"use_ema": True, "ema_momentum": ema_momentum}
    optimizer = OnePassAdam(schedule, weight_decay=weight_decay, **arguments)
    if weight_decay is None:
        return optimizer
    # The weights that are not matrices.
    optimizer.exclude_from_weight_decay(var_names=list(NOT_DECAYED))
    return optimizer


@gin.register
def constant_adam(
    *,
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.95,
    epsilon: float = 1e-8,
) -> keras.optimizers.Optimizer:
    """The paper's optimizer of fine-tuning: Adam at a constant rate.

    Args:
        learning_rate, beta_1, beta_2, epsilon: As in `build_optimizer`.

    Raises:
        InputError: The rate is not positive.

    Source: paper, section 3.4.
    """
    if not learning_rate > 0:
        raise InputError(f"the learning rate must be above 0. Received: {learning_rate=}")
    return OnePassAdam(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)


@contextlib.contextmanager
def averaged_weights(model: keras.Model, optimizer: keras.optimizers.Optimizer):
    """Context in which a model has the moving average of its weights.

    Args:
        model: The model; its own weights are restored at the end.
        optimizer: Optimizer with the average (`build_optimizer.ema_momentum`).
    """
    own = model.get_weights()
    optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        model.set_weights(own)
