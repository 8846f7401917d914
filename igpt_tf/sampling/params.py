"""What may be asked of a model: one table for live models, served ones and clients."""

from igpt_tf.errors import InputError

MOST_IMAGES = 4096  # of one request
MOST_BYTES = 2**25  # of an image file
MOST_PIXELS = 2**25  # of the image in it

# What each argument must be, and the test of it, for numbers and tensors alike.
LIMITS = {
    "num_images": (f"1 to {MOST_IMAGES}", lambda x: (x >= 1) & (x <= MOST_IMAGES)),
    "seed": ("-2^31 to 2^31 - 1", lambda x: (x >= -(2**31)) & (x < 2**31)),
    "temperature": ("finite and positive", lambda x: (x > 0) & (x < float("inf"))),
    "top_k": ("0 (all colours) or positive", lambda x: x >= 0),
    "top_p": ("above 0 and at most 1", lambda x: (x > 0) & (x <= 1)),
    "num_rounds": ("1 to 1024", lambda x: (x >= 1) & (x <= 1024)),
}


def check(**arguments) -> None:
    """Checks numbers, by the names in `LIMITS`. Raises: InputError."""
    for name, value in arguments.items():
        allowed, holds = LIMITS[name]
        if not holds(value):
            raise InputError(f"{name} must be {allowed}. Received: {name}={value}")


def later_seed(seed: int, number: int) -> int:
    """The seed that paints image `number` of a request alone; wraps around as the graph's int32."""
    return (seed + number + 2**31) % 2**32 - 2**31


def check_given(num_given: int, sequence_length: int) -> None:
    """Checks the number of kept pixels. Raises: InputError."""
    if not 0 <= num_given <= sequence_length:
        raise InputError(
            f"num_given must be 0 to {sequence_length}, the pixels of an image. "
            f"Received: num_given={num_given}"
        )


def given_pixels(num_given: str, image_size: tuple[int, int]) -> int:
    """Raster pixels from text: "0.5" is a share of the rows, "12" so many whole rows.

    Raises:
        InputError: Not such a number, or more than the image has.
    """
    height, width = image_size
    try:
        rows = round(float(num_given) * height) if "." in num_given else int(num_given)
    except (ValueError, OverflowError):
        rows = -1
    if not 0 <= rows <= height:
        raise InputError(
            f"num_given is a share of the image such as 0.5, or 0 to {height} rows. "
            f"Received: {num_given=}"
        )
    return rows * width
