"""Functions with hand-written gradients, which keep less memory for the backward pass."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

from keras import ops

_compiler = contextvars.ContextVar("elementwise_compiler", default=None)


def elementwise(function: Callable) -> Callable:
    """Marks a function of tensors whose operations are all elementwise.

    A backend that runs operations one by one reads and writes every intermediate tensor. Within
    `elementwise_compiler(compiler)`, `compiler(function)` runs instead, as one loop over memory.
    """

    @functools.wraps(function)
    def call(*tensors):
        compiler = _compiler.get()
        return (compiler(function) if compiler else function)(*tensors)

    return call


@contextlib.contextmanager
def elementwise_compiler(compiler: Callable[[Callable], Callable]) -> Iterator[None]:
    """Context in which `compiler` compiles the functions marked with `elementwise`.

    Args:
        compiler: Maps a function of tensors to a faster one with the same results, and returns the
            same object for the same function.
    """
    token = _compiler.set(compiler)
    try:
        yield
    finally:
        _compiler.reset(token)


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


def after(tensor, number: float):
    """`number`, known only once `tensor` is.

    What takes it waits for `tensor`, so that two large pieces of work are not in memory at once.
    And what the backward pass computes again with it, after its incoming gradient, is not found
    equal to what the forward pass computed: graph optimisers would merge the two, and keep it.

    Args:
        tensor: float[...].
        number: Finite.

    Returns:
        float[].
    """
    # The minimum is always zero, which no optimiser can know.
    return number + ops.minimum(ops.square(ops.ravel(tensor)[0]), 0)


def read(variable):
    """The variable's value as a tensor: hand-written gradients take no variables."""
    return ops.reshape(variable, variable.shape)


def transposed(x):
    """Swaps the last two axes."""
    return ops.swapaxes(x, -1, -2)


def _inverse_rms(x):
    """float[...,D] -> 1 / sqrt(mean(x^2) + 1e-5), float32[...,1]."""
    wide = ops.cast(x, "float32")
    return ops.rsqrt(ops.mean(ops.square(wide), axis=-1, keepdims=True) + 1e-5)


@elementwise
def _scaled(x, factor, gain):
    return ops.cast(ops.cast(x, "float32") * factor * ops.cast(gain, "float32"), x.dtype)


def _norm_gradient(x, inverse, gain, upstream):
    """Gradients of x and gain."""
    wide, slope, wide_gain = (ops.cast(one, "float32") for one in (x, upstream, gain))
    product = slope * wide
    gain_gradient = _summed(product * inverse)
    along = ops.matmul(product, wide_gain[:, None]) * inverse**3 / x.shape[-1]
    x_gradient = _across(slope, wide_gain, inverse, wide, along)
    return ops.cast(x_gradient, x.dtype), ops.cast(gain_gradient, gain.dtype)


@elementwise
def _across(slope, gain, inverse, x, along):
    """slope * gain * inverse, less its part along x: a longer x has the same norm(x)."""
    return slope * gain * inverse - x * along


def _summed(x):
    """float[...,D] -> float[D]."""
    return ops.sum(x, axis=tuple(range(len(x.shape) - 1)))


@with_gradient
def rms_normalise(x, gain):
    """x * rsqrt(mean(x^2) + 1e-5) * gain, in float32; keeps `x` and one number a position.

    Args:
        x: float[...,D].
        gain: float[D].

    Returns:
        float[...,D] of the dtype of `x`.
    """
    inverse = _inverse_rms(x)

    def gradient(upstream):
        again = inverse * ops.cast(after(upstream, 1.0), "float32")
        return _norm_gradient(x, again, gain, upstream)

    return _scaled(x, inverse, gain), gradient


@with_gradient
def normalised_matmul(x, gain, kernel):
    """rms_normalise(x, gain) @ kernel; keeps `x` but not what is normalised.

    Args:
        x: float[...,D].
        gain: float[D].
        kernel: float[D,N].

    Returns:
        float[...,N].
    """
    inverse = _inverse_rms(x)

    def gradient(upstream):
        again = inverse * ops.cast(after(upstream, 1.0), "float32")
        kernel_gradient = _kernel_gradient(_scaled(x, again, gain), upstream)
        slope = ops.matmul(upstream, transposed(kernel))
        return *_norm_gradient(x, again, gain, slope), kernel_gradient

    return ops.matmul(_scaled(x, inverse, gain), kernel), gradient


def _kernel_gradient(x, upstream):
    """That of the kernel in x @ kernel: float[...,N], float[...,D] -> float[N,D]."""
    rows, slopes = (ops.reshape(one, (-1, one.shape[-1])) for one in (x, upstream))
    return ops.matmul(transposed(rows), slopes)


# The paper's GELU is x sigmoid(1.702 x), so 1.702 times as much goes in, and u sigmoid(u), for
# which TensorFlow has one kernel on CPUs, comes out 1.702 times too large.
_GELU = 1.702


def quick_gelu(x):
    """The paper's approximation of GELU: x * sigmoid(1.702 x)."""
    return ops.silu(_GELU * x) / _GELU


@elementwise
def _silu_again(wide, upstream):
    """silu(wide) / 1.702, and the gradient of `wide` for that of this."""
    gate = ops.sigmoid(wide)
    active = wide * gate
    return active / _GELU, upstream * ((gate + active * (1 - gate)) / _GELU)


@with_gradient
def normalised_mlp(x, gain, input_kernel, output_kernel):
    """quick_gelu(rms_normalise(x, gain) @ input_kernel) @ output_kernel.

    Keeps `x` and the first product; the norm and the GELU are computed again.

    Args:
        x: float[...,D].
        gain: float[D].
        input_kernel: float[D,N].
        output_kernel: float[N,D].

    Returns:
        float[...,D].
    """
    inverse = _inverse_rms(x)
    steep = gain * _GELU
    wide = ops.matmul(_scaled(x, inverse, steep), input_kernel)

    def gradient(upstream):
        again = inverse * ops.cast(after(upstream, 1.0), "float32")
        unit = _scaled(x, again, steep)
        active, slope = _silu_again(wide, ops.matmul(upstream, transposed(output_kernel)))
        below = ops.matmul(slope, transposed(input_kernel))
        x_gradient, steep_gradient = _norm_gradient(x, again, steep, below)
        return (
            x_gradient,
            steep_gradient * _GELU,
            _kernel_gradient(unit, slope),
            _kernel_gradient(active, upstream),
        )

    return ops.matmul(ops.silu(wide), output_kernel / _GELU), gradient
