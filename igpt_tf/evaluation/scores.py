"""Scores: nats per token of a SavedModel on a data set or on a file of tokens."""

import os
from collections.abc import Iterable, Iterator

import gin
import numpy as np
from tqdm import tqdm

from igpt_tf import config, files
from igpt_tf.data import Source, evaluation_batches, iterate
from igpt_tf.data.sources import Examples
from igpt_tf.errors import InputError
from igpt_tf.evaluation import plots
from igpt_tf.evaluation.splits import SPLIT_TITLES, resolve_source
from igpt_tf.formatting import table
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.load import SavedModel

_ROWS = 4096  # rows of a file of tokens in memory at a time; OpenAI's largest has over a million


@gin.configurable
def evaluate(
    *,
    saved_model: str,
    workdir: str,
    source: Source | None = None,
    split: str = "valid",
    tokens: str | None = None,
    num_images: int | None = None,
    batch_size: int = 32,
) -> dict:
    """Scores a split of a data set, or a file of tokens.

    Args:
        saved_model: Path of the model.
        workdir: Folder for `evaluate.json` and `evaluate.png`.
        source: The data set; None for the model's training data.
        split: "train", "valid" or "test".
        tokens: A `.npy` file int[N,T] or int[N,H,W] to score instead of a data set.
        num_images: Number of images to score, the first ones; None for all of them.
        batch_size: Images per call of the network.

    Returns:
        The content of `evaluate.json`. "nats_per_token" is the mean over images and
        "standard_error" that of this mean, None for one image. "score" is "likelihood", or
        "pseudo-likelihood" for masked models, which differs from their training loss per hidden
        token: every pixel is predicted once, from the pixels outside its fold.

    Raises:
        InputError: The model has no signature `score`, or the data do not fit it.
    """
    config.refuse_unread_bindings()
    files.make_workdir(workdir)
    model = SavedModel(saved_model)
    if num_images is not None and num_images < 1:
        raise InputError(f"num_images must be 1 or more. Received: {num_images=}")
    if tokens:
        rows = load_tokens(tokens, model, num_images)
        batches, size = token_batches(model, rows, batch_size), len(rows)
        description = {"data": os.path.basename(tokens), "split": None}
    else:
        source = resolve_source(model, source, "evaluate")
        examples = choose_split(source, split)
        examples = examples.take(np.arange(len(examples))[:num_images])
        batches, size = image_batches(examples, batch_size), len(examples)
        description = {"data": source.name, "data_arguments": source.arguments, "split": split}
    numbers, surprise = score(model, batches, size)
    report = {
        "saved_model": model.path,
        "step": model.metadata.get("step"),
        "score": model.metadata.get("score", "likelihood"),
        **description,
        **numbers,
    }
    files.write_json(os.path.join(workdir, "evaluate.json"), report)
    title = (
        f"{plots.run_name(report)}: {report['nats_per_token']:.4f} {_score_name(report)} "
        f"on {size:,} images of {_data_name(report)}"
    )
    plots.surprise_map(os.path.join(workdir, "evaluate.png"), surprise, title)
    return report


def format_report(report: dict) -> str:
    """The report of `evaluate` as a table of one row."""
    row = [
        _data_name(report),
        f"{report['num_images']:,}",
        f"{report['nats_per_token']:.4f}",
        "" if report["standard_error"] is None else f"{report['standard_error']:.4f}",
    ]
    text = table(["data", "images", _score_name(report), "standard error"], [row])
    if report["score"] == "pseudo-likelihood":
        text += (
            "\nA masked model's score predicts every pixel once, from the pixels outside its fold; "
            "its loss in training (nats per hidden token) is measured on random masks."
        )
    return text


def _score_name(report: dict) -> str:
    """Masked models have no likelihood; their number must not be taken for one."""
    kind = "pseudo-" if report["score"] == "pseudo-likelihood" else ""
    return f"{kind}nats/token"


def _data_name(report: dict) -> str:
    return report["data"] + (f", {SPLIT_TITLES[report['split']]}" if report["split"] else "")


def score(
    model: SavedModel, batches: Iterable[np.ndarray], num_images: int
) -> tuple[dict, np.ndarray]:
    """Scores `num_images` images in batches uint8[B,H,W,3].

    Returns:
        ({"nats_per_token", "standard_error", "num_images"}, the mean surprise float64[H,W] of each
        pixel in nats).
    """
    signature = model.signature("score")
    nats, surprise = [], 0.0
    with tqdm(total=num_images, unit="image", desc="score") as progress:
        for images in batches:
            scores = signature(images=images)
            nats.extend(scores["nats_per_token"].tolist())
            surprise = surprise + scores["surprise"].sum(axis=0, dtype="float64")
            progress.update(len(images))
    error = float(np.std(nats, ddof=1) / np.sqrt(len(nats))) if len(nats) > 1 else None
    numbers = {
        "nats_per_token": float(np.mean(nats)),
        "standard_error": error,
        "num_images": len(nats),
    }
    return numbers, surprise / len(nats)


def image_batches(examples: Examples, batch_size: int) -> Iterator[np.ndarray]:
    """Yields every image once, uint8[B,H,W,3]; the last batch may be smaller."""
    for batch in iterate(evaluation_batches(examples, batch_size=batch_size), examples):
        yield batch["images"].numpy()[: int(batch["weight"].numpy().sum())]


def token_batches(model: SavedModel, tokens: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yields `tokens` int[N,T] as images uint8[B,H,W,3] in the model's palette."""
    for start in range(0, len(tokens), batch_size):
        batch = np.asarray(tokens[start : start + batch_size], "int32")
        yield model.palette.decode(batch, model.image_size)


def load_tokens(path: str, model: SavedModel, num_images: int | None = None) -> np.ndarray:
    """Opens a `.npy` file of tokens, such as those that OpenAI has published.

    Args:
        path: The file, int[N,T] or int[N,H,W].
        model: The model whose palette the tokens belong to.
        num_images: Number of images to use, the first ones; None for all of them.

    Returns:
        int[N,T], memory-mapped.

    Raises:
        InputError: The file is missing or has another content, a token is outside the palette, or
            two colours of the palette are equal in 8 bits, so that images do not determine tokens.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it is not a NumPy array of numbers"
        raise InputError(
            f"the file of tokens cannot be read ({reason}); pass a file written by numpy.save. "
            f"Received: tokens={path}"
        ) from None
    if not isinstance(tokens, np.ndarray):
        raise InputError(
            f"a .npz archive is not a file of tokens; pass a .npy file. Received: tokens={path}"
        )
    height, width = model.image_size
    shapes = ((height * width,), (height, width))
    if tokens.shape[1:] not in shapes or not len(tokens) or tokens.dtype.kind not in "iu":
        raise InputError(
            f"tokens must be integers [N, {height * width}] or [N, {height}, {width}] for this "
            f"model. Received: dtype={tokens.dtype}, shape={tokens.shape}, tokens={path}"
        )
    tokens = tokens[:num_images].reshape(-1, height * width)
    used = _used_tokens(tokens)
    if used[0] < 0 or used[-1] >= len(model.palette):
        raise InputError(
            f"tokens must be 0 to {len(model.palette) - 1}. "
            f"Received: smallest={used[0]}, largest={used[-1]}, tokens={path}"
        )
    _check_round_trip(model.palette, used)
    return tokens


def _used_tokens(tokens: np.ndarray) -> np.ndarray:
    """Sorted distinct tokens, found block by block because the file may be large."""
    blocks = [np.unique(tokens[i : i + _ROWS]) for i in range(0, len(tokens), _ROWS)]
    return np.unique(np.concatenate(blocks))


def choose_split(source: Source, split: str) -> Examples:
    """The split of that name. Raises: InputError: The data set does not have it."""
    examples = getattr(source, split) if split in SPLIT_TITLES else None
    if examples is None:
        present = [name for name in SPLIT_TITLES if getattr(source, name) is not None]
        raise InputError(
            f"the data set {source.name} has the splits {', '.join(present)}. Received: {split=}"
        )
    return examples


def _check_round_trip(palette: Palette, used: np.ndarray) -> None:
    """Raises InputError unless encoding the colours of the tokens `used` returns these tokens."""
    images = palette.decode(used[:, None], (1, 1))
    wrong = used[palette.encode(images)[:, 0] != used]
    if len(wrong):
        raise InputError(
            f"the colour of token {wrong[0]}, rounded to 8 bits, is encoded as another token of "
            "this palette, so that these tokens cannot be scored as images. "
            f"Received: {len(wrong)} such tokens"
        )
