"""Kernels cut into panels of columns, for products of few rows.

A CPU copies a kernel, some columns at a time, into the order in which it multiplies. In the whole
kernel the rows of those columns lie a page of memory apart, in a panel one after the other. Where
rows are many the copy costs little; where there is one of each image, it is half the time.
"""

from keras import ops

from igpt_tf.model import ImageGPT

_COLUMNS = 64
_MOST_ROWS = 32  # with more, panels are no faster; and a single one needs no copy


def worthwhile(num_rows: int) -> bool:
    """Whether a CPU multiplies so many rows faster with panels."""
    return 1 < num_rows <= _MOST_ROWS


def cut(model: ImageGPT) -> list:
    """The panels float[N/P,K,P] of every kernel float[K,N] of the blocks."""
    return [_cut(kernel) for kernel in _kernels(model)]


class Panels:
    """Multiplies with panels in the place of kernels.

    Args:
        model: An `ImageGPT`.
        panels: What `cut(model)` returned.
    """

    def __init__(self, model: ImageGPT, panels: list):
        self._panels = {
            id(kernel): panel for kernel, panel in zip(_kernels(model), panels, strict=True)
        }

    def matmul(self, x, kernel):
        """float[B,1,K] @ `kernel`, a variable float[K,N] of the model -> float[B,1,N]."""
        panels = self._panels[id(kernel)]
        rows = ops.transpose(x, (1, 0, 2))
        rows = ops.broadcast_to(rows, (panels.shape[0], *rows.shape[1:]))
        columns = ops.transpose(ops.matmul(rows, panels), (1, 0, 2))
        return ops.reshape(columns, (-1, 1, kernel.shape[1]))


def _kernels(model):
    layers = [layer for block in model.blocks for layer in (block.attention, block.mlp)]
    return [kernel for layer in layers for kernel in layer.weights]


def _cut(kernel):
    rows, columns = kernel.shape
    width = next(width for width in range(min(_COLUMNS, columns), 0, -1) if columns % width == 0)
    return ops.transpose(ops.reshape(kernel, (rows, columns // width, width)), (1, 0, 2))
