"""Adam written out in `keras.ops`, for programs whose variables are arguments and results."""

from keras import ops

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.95, 1e-8  # their values do not change the program


def update(rate, weight, mean, square, gradient):
    """New (weight, mean, square) of a weight; `rate` includes the corrections of the first steps.

    Args:
        rate: float32[].
        weight: float32[...].
        mean: First moment, float32[...].
        square: Second moment, float32[...].
        gradient: float32[...].
    """
    mean += (gradient - mean) * (1 - _BETA_1)
    square += (ops.square(gradient) - square) * (1 - _BETA_2)
    return weight - rate * mean / (ops.sqrt(square) + _EPSILON), mean, square
