"""What a file of weights holds against what the network needs, by names and shapes alone."""

import math
from collections.abc import Mapping

from igpt_tf.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]


def compare(expected: Shapes, found: Shapes, path: str) -> None:
    """Stops unless a file holds just what the network needs.

    Args:
        expected: Name -> shape of every variable the network takes.
        found: Name -> shape of every variable of the file, known by-products left out.
        path: The file, for the message.

    Raises:
        InputError: Names every variable that is missing, left over or of another shape.
    """
    misshapen = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    lists = {
        "missing": [name for name in expected if name not in found],
        "left over": [name for name in found if name not in expected],
        "of another shape": misshapen,
    }
    problems = [f"{kind}: {', '.join(names)}" for kind, names in lists.items() if names]
    if problems:
        raise InputError(
            f"the weights are not those of an Image GPT; {'; '.join(problems)}. "
            f"Received: path={path}"
        )


def square_image(sequence_length: int, path: str) -> tuple[int, int]:
    """The (H, W) of a square image of so many pixels.

    Raises:
        InputError: No square has them.
    """
    side = math.isqrt(sequence_length)
    if side * side != sequence_length:
        raise InputError(
            "the context is not that of a square image, and the file tells no other size. "
            f"Received: sequence_length={sequence_length}, path={path}"
        )
    return side, side


def check_palette(num_colours: int, vocabulary_size: int) -> None:
    """Raises: InputError if a palette and a vocabulary differ in size."""
    if num_colours != vocabulary_size:
        raise InputError(
            "the palette is not the one this model was trained with: it has "
            f"{num_colours} colours and the model {vocabulary_size} tokens; name its own with "
            f"--palette. Received: num_colours={num_colours}, vocabulary_size={vocabulary_size}"
        )
