"""Parameters of a sampling request and their limits.

Live models, SavedModel signatures, clients and the web page share this module. It does not import
TensorFlow.
"""

import dataclasses
import numbers

from igpt_tf.errors import InputError

MAX_IMAGES = 4096  # per request
_MAX_INT32 = 2**31 - 1

# name -> (description of the valid range, test of a value). The tests accept Python numbers, NumPy
# scalars and tensors, so that eager code and graph assertions share them.
LIMITS = {
    "num_images": (f"1 to {MAX_IMAGES}", lambda x: (x >= 1) & (x <= MAX_IMAGES)),
    "seed": ("-2^31 to 2^31 - 1", lambda x: (x >= -(2**31)) & (x < 2**31)),
    "temperature": ("finite and positive", lambda x: (x > 0) & (x < float("inf"))),
    "top_k": ("0 (all colours) or positive", lambda x: x >= 0),
    "top_p": ("above 0 and at most 1", lambda x: (x > 0) & (x <= 1)),
    "num_rounds": ("1 to 1024", lambda x: (x >= 1) & (x <= 1024)),
    "batch_size": ("1 or more", lambda x: x >= 1),
}
_REAL = ("temperature", "top_p")  # the others are integers


def check_limits(**arguments) -> None:
    """Checks numbers against `LIMITS`.

    Raises:
        InputError: A value is not a number, not an integer where one is needed, or out of range.
    """
    for name, value in arguments.items():
        _check_type(name, value, numbers.Real if name in _REAL else numbers.Integral)
        valid, is_valid = LIMITS[name]
        if not is_valid(value):
            raise InputError(f"{name} must be {valid}. Received: {name}={value}")


def _check_type(name: str, value, kind: type) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "an integer" if kind is numbers.Integral else "a number"
        raise InputError(f"{name} must be {what}. Received: {name}={value!r}")


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen from logits.

    Image i of a request is sampled with `seed + i`. The same parameters give the same images,
    whatever the batch size.

    Args:
        seed: Random seed of the first image, -2^31 to 2^31 - 1.
        temperature: Divisor of the logits, finite and positive.
        top_k: Number of most likely tokens to choose from; 0 keeps all.
        top_p: Probability mass in (0, 1] of the most likely tokens to choose from; 1 keeps all.

    Raises:
        InputError: A parameter is out of range.

    Example:
        >>> SamplingParams(seed=7, top_p=0.9).for_image(2)
        SamplingParams(seed=9, temperature=1.0, top_k=0, top_p=0.9)
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        check_limits(**dataclasses.asdict(self))

    def for_image(self, index: int) -> "SamplingParams":
        """Returns the parameters that sample image `index` of the request as a first image.

        The seed wraps around as an int32 does.
        """
        seed = (self.seed + index + 2**31) % 2**32 - 2**31
        return dataclasses.replace(self, seed=seed)

    def as_dict(self) -> dict:
        """Returns the inputs of a signature: numbers that fit int32 and float32."""
        return {**dataclasses.asdict(self), "top_k": min(self.top_k, _MAX_INT32)}


PLAIN_SAMPLING = SamplingParams()  # as in the paper: temperature 1, all tokens


def check_num_given(num_given: int, sequence_length: int) -> None:
    """Checks the number of raster pixels that a completion keeps.

    Raises:
        InputError: `num_given` is no integer, negative or larger than `sequence_length`.
    """
    _check_type("num_given", num_given, numbers.Integral)
    if not 0 <= num_given <= sequence_length:
        raise InputError(
            f"num_given must be 0 to {sequence_length}, the pixels of an image. "
            f"Received: num_given={num_given}"
        )


def parse_num_given(num_given: str, image_size: tuple[int, int]) -> int:
    """Returns the number of raster pixels that a flag's text stands for.

    Args:
        num_given: A share of the rows such as "0.5", or a number of rows such as "12".
        image_size: (H, W) in pixels.

    Raises:
        InputError: The text is not a number, or the image has fewer rows.
    """
    height, width = image_size
    try:
        rows = round(float(num_given) * height) if "." in num_given else int(num_given)
    except (ValueError, OverflowError):
        rows = -1
    if not 0 <= rows <= height:
        raise InputError(
            f"num_given must be a share of the image such as 0.5, or 0 to {height} rows. "
            f"Received: {num_given=}"
        )
    return rows * width
