"""How well a SavedModel predicts images: nats per token."""

import os
from collections.abc import Iterable, Iterator

import numpy as np
from tqdm import tqdm

from igpt_tf.data import Source, evaluation_batches, iterate
from igpt_tf.data.sources import Examples
from igpt_tf.errors import InputError
from igpt_tf.evaluation.splits import source_of
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.load import SavedModel

SPLITS = ("train", "valid", "test")
_ROWS = 4096  # of a file of tokens in memory at a time; OpenAI's largest has over a million


def evaluate(
    model: SavedModel,
    *,
    source: Source | None,
    split: str,
    tokens: str | None,
    batch_size: int,
    num_images: int | None = None,
) -> tuple[dict, np.ndarray]:
    """Scores a part of a data set, or a file of tokens.

    Args:
        model: The model.
        source: The data set; None for the one the model was trained on.
        split: Which part of it.
        tokens: A `.npy` file int[N,T] or int[N,H,W] instead.
        batch_size: Images at a time.
        num_images: Score the first so many only; None for all.

    Returns:
        (the report, JSON-able: "nats_per_token", the mean over images, "standard_error" of that
        mean, ...; the mean surprise float64[H,W] at each pixel, in nats).

    Raises:
        InputError: The model has no signature `score`, or the data do not fit it.
    """
    if num_images is not None and num_images < 1:
        raise InputError(f"the number of images to score is 1 or more. Received: {num_images=}")
    if tokens:
        table = load_tokens(tokens, model, num_images)
        batches, num_images = token_batches(model, table, batch_size), len(table)
        about = {"data": os.path.basename(tokens), "split": None}
    else:
        source = source_of(model, source, tool="evaluate")
        examples = choose_split(source, split)
        examples = examples.take(np.arange(len(examples))[:num_images])
        batches, num_images = image_batches(examples, batch_size), len(examples)
        about = {"data": source.name, "data_arguments": source.arguments, "split": split}
    scores, surprise = score(model, batches, num_images)
    kind = model.metadata.get("score", "likelihood")
    return {"saved_model": model.path, "score": kind, **about, **scores}, surprise


def score(
    model: SavedModel, batches: Iterable[np.ndarray], num_images: int
) -> tuple[dict, np.ndarray]:
    """(numbers, mean surprise float64[H,W]) of `num_images` images in batches uint8[B,H,W,3]."""
    signature = model.signature("score")
    nats, surprise = [], 0.0
    with tqdm(total=num_images, unit="image", desc="score") as bar:
        for images in batches:
            scores = signature(images=images)
            nats.extend(scores["nats_per_token"].tolist())
            surprise = surprise + scores["surprise"].sum(axis=0, dtype="float64")
            bar.update(len(images))
    deviation = np.std(nats, ddof=1) if len(nats) > 1 else 0.0
    numbers = {
        "nats_per_token": float(np.mean(nats)),
        "standard_error": float(deviation / np.sqrt(len(nats))),
        "num_images": len(nats),
    }
    return numbers, surprise / len(nats)


def image_batches(examples: Examples, batch_size: int) -> Iterator[np.ndarray]:
    """Yields every image once, uint8[B,H,W,3]; the last batch may be smaller."""
    for batch in iterate(evaluation_batches(examples, batch_size=batch_size), examples):
        yield batch["images"].numpy()[: int(batch["weight"].numpy().sum())]


def token_batches(model: SavedModel, tokens: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yields the images that `tokens` int[N,T] stand for, in the model's palette."""
    for start in range(0, len(tokens), batch_size):
        batch = np.asarray(tokens[start : start + batch_size], "int32")
        yield model.palette.decode(batch, model.image_size)


def load_tokens(path: str, model: SavedModel, num_images: int | None = None) -> np.ndarray:
    """Opens a `.npy` file of tokens, as OpenAI publishes them.

    Args:
        path: The file, int[N,T] or int[N,H,W].
        model: Whose tokens they are.
        num_images: Take the first so many; None for all.

    Returns:
        int[N,T], on the disk until it is used.

    Raises:
        InputError: The file is missing or no such array, a token is outside the palette, or two
            of the palette's colours look the same, so that an image does not tell its tokens.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"not a file of tokens ({error}). Received: tokens={path}") from None
    if not isinstance(tokens, np.ndarray):
        raise InputError(f"a .npz archive is not a file of tokens. Received: tokens={path}")
    height, width = model.image_size
    rows = ((height * width,), (height, width))
    if tokens.shape[1:] not in rows or not len(tokens) or tokens.dtype.kind not in "iu":
        raise InputError(
            f"tokens are integers [N, {height * width}] or [N, {height}, {width}] for this model. "
            f"Received: dtype={tokens.dtype}, shape={tokens.shape}, tokens={path}"
        )
    tokens = tokens[:num_images].reshape(-1, height * width)
    used = _used(tokens)
    if used[0] < 0 or used[-1] >= len(model.palette):
        raise InputError(
            f"tokens lie between 0 and {len(model.palette) - 1}. "
            f"Received: smallest={used[0]}, largest={used[-1]}, tokens={path}"
        )
    _check_round_trip(model.palette, used)
    return tokens


def _used(tokens: np.ndarray) -> np.ndarray:
    """The different tokens there are, in order; a part at a time, as the file may be large."""
    parts = [np.unique(tokens[i : i + _ROWS]) for i in range(0, len(tokens), _ROWS)]
    return np.unique(np.concatenate(parts))


def choose_split(source: Source, split: str) -> Examples:
    """The named part. Raises: InputError: No such part, or this data set has none."""
    examples = getattr(source, split) if split in SPLITS else None
    if examples is None:
        present = [name for name in SPLITS if getattr(source, name) is not None]
        raise InputError(
            f"the data set {source.name} has the parts {', '.join(present)}. Received: {split=}"
        )
    return examples


def _check_round_trip(palette: Palette, used: np.ndarray) -> None:
    """Raises InputError unless the colours of the tokens `used` give those tokens back."""
    images = palette.decode(used[:, None], (1, 1))
    wrong = used[palette.encode(images)[:, 0] != used]
    if len(wrong):
        raise InputError(
            f"the colour of token {wrong[0]}, rounded to 8 bits, belongs to another token of this "
            f"palette, so that these tokens cannot be scored as images. Received: {len(wrong)} such"
        )
