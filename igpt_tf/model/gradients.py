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
    """Decorates a function with a hand-written gradient.

    Automatic differentiation keeps the inputs of every operation in memory until the backward
    pass. Here, only the tensors that the gradient refers to are kept; cheap ones are recomputed.

    Args:
        function: Maps tensors to (result, gradient), where `gradient(upstream)` maps the gradient
            of the result to a tuple of gradients, one per tensor. Variables must be read first
            (see `read`).
    """

    @ops.custom_gradient
    def differentiable(*tensors):
        result, gradient = function(*tensors)

        def backward(*args, upstream=None):  # torch passes it by name, other backends by position
            return gradient(args[0] if upstream is None else upstream)

        return result, backward

    return differentiable


def delay(number: float, until):
    """Returns `number` as a tensor that is available only after the tensor `until`.

    Multiplying with it orders work that graphs leave unordered, for two reasons:

    * Two large pieces of work are not in memory at the same time.
    * Recomputation in the backward pass stays a recomputation. TensorFlow and XLA merge equal
      expressions; without the delay they would find that the forward pass has computed the same,
      and keep its result in memory.

    Args:
        number: Finite.
        until: float[...].

    Returns:
        float[] of the dtype of `until`.
    """
    # The minimum is always 0, but no optimizer can know: the square could be NaN.
    return number + ops.minimum(ops.square(ops.ravel(until)[0]), 0)


def read(variable):
    """Returns the value of a variable as a tensor; custom gradients accept tensors only."""
    return ops.reshape(variable, variable.shape)


def swap_last_axes(x):
    """float[...,M,N] -> float[...,N,M]."""
    return ops.swapaxes(x, -1, -2)


def _inverse_rms(x):
    """float[...,D] -> 1 / sqrt(mean(x^2) + 1e-5), float32[...,1]."""
    x = ops.cast(x, "float32")
    return ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-5)


@elementwise
def _rescale(x, factor, gain):
    return ops.cast(ops.cast(x, "float32") * factor * ops.cast(gain, "float32"), x.dtype)


def _rms_norm_gradient(x, inverse, gain, upstream):
    """Gradients of x and gain."""
    x_dtype, gain_dtype = x.dtype, gain.dtype
    x, upstream, gain = (ops.cast(one, "float32") for one in (x, upstream, gain))
    product = upstream * x
    gain_gradient = ops.sum(product * inverse, axis=tuple(range(len(x.shape) - 1)))
    # A matrix-vector product instead of a sum over D of products: one pass over memory.
    along_x = ops.matmul(product, gain[:, None]) * inverse**3 / x.shape[-1]
    x_gradient = _remove_component(upstream, gain, inverse, x, along_x)
    return ops.cast(x_gradient, x_dtype), ops.cast(gain_gradient, gain_dtype)


@elementwise
def _remove_component(upstream, gain, inverse, x, along_x):
    """upstream * gain * inverse without its component along x: scaling x leaves norm(x) as is."""
    return upstream * gain * inverse - x * along_x


@with_gradient
def rms_norm(x, gain):
    """x * rsqrt(mean(x^2) + 1e-5) * gain, in float32; keeps `x` and one number per position.

    Args:
        x: float[...,D].
        gain: float[D].

    Returns:
        float[...,D] of the dtype of `x`.
    """
    inverse = _inverse_rms(x)

    def gradient(upstream):
        delayed = inverse * ops.cast(delay(1.0, until=upstream), "float32")
        return _rms_norm_gradient(x, delayed, gain, upstream)

    return _rescale(x, inverse, gain), gradient


@with_gradient
def rms_norm_matmul(x, gain, kernel):
    """rms_norm(x, gain) @ kernel.

    The gradient of the kernel needs the normalised x, which is as large as x. Because the norm and
    the product share one gradient, only `x` is kept, which the residual connection keeps anyway;
    the norm is computed again, one elementwise pass beside three matrix products.

    Args:
        x: float[...,D].
        gain: float[D].
        kernel: float[D,N].

    Returns:
        float[...,N].
    """
    inverse = _inverse_rms(x)

    def gradient(upstream):
        delayed = inverse * ops.cast(delay(1.0, until=upstream), "float32")
        kernel_gradient = _kernel_gradient(_rescale(x, delayed, gain), upstream)
        below = ops.matmul(upstream, swap_last_axes(kernel))
        return *_rms_norm_gradient(x, delayed, gain, below), kernel_gradient

    return ops.matmul(_rescale(x, inverse, gain), kernel), gradient


def _kernel_gradient(x, upstream):
    """Gradient of the kernel in x @ kernel. float[...,D], float[...,N] -> float[D,N]."""
    x, upstream = (ops.reshape(one, (-1, one.shape[-1])) for one in (x, upstream))
    return ops.matmul(swap_last_axes(x), upstream)


# Quick GELU is x * sigmoid(1.702 x) = silu(1.702 x) / 1.702. TensorFlow has one CPU kernel for
# silu, which reads and writes memory once; the formula written out does so three times.
_GELU_SCALE = 1.702


def quick_gelu(x):
    """The paper's approximation of GELU: x * sigmoid(1.702 x)."""
    return ops.silu(_GELU_SCALE * x) / _GELU_SCALE


@elementwise
def _gelu_and_gradient(scaled, upstream):
    """silu(scaled) / 1.702, and the gradient of `scaled` from that of this result."""
    gate = ops.sigmoid(scaled)
    silu = scaled * gate
    return silu / _GELU_SCALE, upstream * ((gate + silu * (1 - gate)) / _GELU_SCALE)


@with_gradient
def rms_norm_mlp(x, gain, input_kernel, output_kernel):
    """quick_gelu(rms_norm(x, gain) @ input_kernel) @ output_kernel.

    Keeps `x` and the first product, float[...,N]. The norm and the GELU are computed again: they
    are elementwise, and their results would take 1.25 times the memory of the first product.

    Args:
        x: float[...,D].
        gain: float[D].
        input_kernel: float[D,N].
        output_kernel: float[N,D].

    Returns:
        float[...,D].
    """
    inverse = _inverse_rms(x)
    # The factors 1.702 and 1 / 1.702 of the GELU go into the gain and the output kernel, which
    # are smaller than the activations.
    scaled_gain = gain * _GELU_SCALE
    scaled = ops.matmul(_rescale(x, inverse, scaled_gain), input_kernel)

    def gradient(upstream):
        delayed = inverse * ops.cast(delay(1.0, until=upstream), "float32")
        normalised = _rescale(x, delayed, scaled_gain)
        active, scaled_gradient = _gelu_and_gradient(
            scaled, ops.matmul(upstream, swap_last_axes(output_kernel))
        )
        below = ops.matmul(scaled_gradient, swap_last_axes(input_kernel))
        x_gradient, gain_gradient = _rms_norm_gradient(x, delayed, scaled_gain, below)
        return (
            x_gradient,
            gain_gradient * _GELU_SCALE,
            _kernel_gradient(normalised, scaled_gradient),
            _kernel_gradient(active, upstream),
        )

    return ops.matmul(ops.silu(scaled), output_kernel / _GELU_SCALE), gradient
