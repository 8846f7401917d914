"""Chains of elementwise operations of which one loop can be made."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

_compiler = contextvars.ContextVar("compiler", default=None)


def fused(function: Callable) -> Callable:
    """A decorator: within `fusing(compiler)`, `compiler(function)` is called instead.

    For functions of tensors alone, every one elementwise: a backend that runs operations one by one
    reads and writes all their numbers each time.
    """

    @functools.wraps(function)
    def call(*tensors):
        compiler = _compiler.get()
        return (compiler(function) if compiler else function)(*tensors)

    return call


@contextlib.contextmanager
def fusing(compiler: Callable[[Callable], Callable]) -> Iterator[None]:
    """Within it a trainer's own compiler is used."""
    token = _compiler.set(compiler)
    try:
        yield
    finally:
        _compiler.reset(token)
