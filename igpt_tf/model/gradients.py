"""Functions with gradients written by hand, which keep less for the backward pass."""

from collections.abc import Callable

from keras import ops


def with_gradient(function: Callable) -> Callable:
    """A decorator: `function(*tensors)` returns its result and the gradient's function.

    That function maps the result's gradient to a tuple, one gradient for each of `tensors`. Only
    what it refers to is kept between the two passes, so that cheap things are computed again.
    """

    @ops.custom_gradient
    def differentiable(*tensors):
        result, gradient = function(*tensors)

        def backward(*args, upstream=None):  # torch names the argument, the other backends do not
            return gradient(args[0] if upstream is None else upstream)

        return result, backward

    return differentiable


def after(upstream, number: float):
    """`number`, known only once the backward pass is at `upstream`.

    What the backward pass computes again with it is not found equal to what the forward pass
    computed: graph optimisers would merge the two, and so keep it in memory.

    Args:
        upstream: float[...].
        number: Finite.

    Returns:
        float[].
    """
    # The minimum is always zero, which no optimiser can know.
    return number + ops.minimum(ops.square(ops.ravel(upstream)[0]), 0)


def read(variable):
    """The variable's value as a tensor: hand-written gradients take no variables."""
    return ops.reshape(variable, variable.shape)


def transposed(x):
    """Swaps the last two axes."""
    return ops.swapaxes(x, -1, -2)


@with_gradient
def rms_normalise(x, scale):
    """x * rsqrt(mean(x^2) + 1e-5) * scale, in float32; keeps `x` and one number a position.

    Args:
        x: float[...,D].
        scale: float[D].

    Returns:
        float[...,D] of the dtype of `x`.
    """
    wide, gain = ops.cast(x, "float32"), ops.cast(scale, "float32")
    inverse = ops.rsqrt(ops.mean(ops.square(wide), axis=-1, keepdims=True) + 1e-5)

    def gradient(upstream):
        wide = ops.cast(x, "float32")
        slope = ops.cast(upstream, "float32")
        unit = wide * (inverse * after(slope, 1.0))
        shares = slope * unit
        scale_gradient = ops.sum(shares, axis=tuple(range(len(x.shape) - 1)))
        along = ops.mean(shares * gain, axis=-1, keepdims=True)
        x_gradient = (slope * gain - unit * along) * inverse
        return ops.cast(x_gradient, x.dtype), ops.cast(scale_gradient, scale.dtype)

    return ops.cast(wide * inverse * gain, x.dtype), gradient


def quick_gelu(x):
    """The paper's approximation of GELU: x * sigmoid(1.702 x)."""
    return x * ops.sigmoid(1.702 * x)


@with_gradient
def activated_matmul(x, kernel):
    """quick_gelu(x) @ kernel; keeps `x` but nothing of the activation.

    Args:
        x: float[...,N].
        kernel: float[N,D].

    Returns:
        float[...,D].
    """

    def gradient(upstream):
        gate = ops.sigmoid(after(upstream, 1.702) * x)
        active = x * gate
        slope = gate + 1.702 * active * (1 - gate)
        x_gradient = ops.matmul(upstream, transposed(kernel)) * slope
        rows = ops.reshape(active, (-1, kernel.shape[0]))
        kernel_gradient = ops.matmul(transposed(rows), ops.reshape(upstream, (-1, kernel.shape[1])))
        return x_gradient, kernel_gradient

    return ops.matmul(quick_gelu(x), kernel), gradient
