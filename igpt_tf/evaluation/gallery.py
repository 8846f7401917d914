"""Pictures of what a SavedModel paints, written into a folder."""

import os
import sys
from collections.abc import Iterator

import numpy as np

from igpt_tf import files, runtime
from igpt_tf.data import Source
from igpt_tf.errors import InputError
from igpt_tf.evaluation import memory, painting
from igpt_tf.image_grid import grid, write_animation, write_png
from igpt_tf.sampling.params import SamplingParams, parse_num_given
from igpt_tf.savedmodel.load import SavedModel

_UNPAINTED = 160  # grey
_MOST_FRAMES = 128
_GIF_COLOURS = 256  # of one frame, grey included


def write_samples(
    saved_model: str,
    workdir: str,
    *,
    num_images: int,
    params: SamplingParams,
    batch_size: int | None,
    animate: bool,
    jit_compile: bool = False,
) -> str:
    """Writes `samples.png`, what they depend on, the single images and, if wanted, the animation.

    Args:
        saved_model: Path of the model.
        workdir: Where the pictures go.
        num_images: N.
        params: How tokens are chosen.
        batch_size: Images at a time; None for as many as the memory is good for.
        animate: Write the animation too: a GIF, or `.apng` where a GIF would lack colours.
        jit_compile: Compile with XLA, which pays for many images.

    Returns:
        What was written, for people.

    Raises:
        InputError: The model cannot sample, an argument is out of range, or the folder cannot be
            written.
    """
    _check_positive(num_images=num_images, batch_size=batch_size)
    files.make_workdir(workdir)
    model = SavedModel(saved_model)
    size = _planned(model, batch_size, num_images)
    painter = painting.Compiled(model) if jit_compile else model
    painted = painting.sample(painter, num_images, params=params, batch_size=size)
    about = {"saved_model": model.path, **params.as_dict()}
    return _written(workdir, "samples", painted, grid(painted), about, animate)


def write_completions(
    saved_model: str,
    workdir: str,
    *,
    images: list[str] | None,
    source: Source | None,
    num_images: int,
    num_given: str,
    completions: int,
    params: SamplingParams,
    batch_size: int | None,
    animate: bool,
    jit_compile: bool = False,
) -> str:
    """Writes `completions.png`, a row an image, and the other files of `write_samples`.

    Args:
        images: Files and folders to complete; None for held-out images of `source`.
        source: A data set; None for the one the model was trained on.
        num_images: Images to complete at most.
        num_given: As text, see `parse_num_given`.
        completions: Of each image.
        saved_model, workdir, params, batch_size, animate, jit_compile: As in
            `write_samples`.

    Raises:
        InputError: The images do not fit the model, or as for `write_samples`.
    """
    _check_positive(num_images=num_images, completions=completions, batch_size=batch_size)
    files.make_workdir(workdir)
    model = SavedModel(saved_model)
    given = parse_num_given(num_given, model.image_size)
    originals = painting.originals(model, images, source, num_images)
    size = _planned(model, batch_size, len(originals) * completions)
    repeated = originals.repeat(completions, axis=0)
    painter = painting.Compiled(model) if jit_compile else model
    painted = painting.complete(painter, repeated, given, params=params, batch_size=size)
    picture = completion_grid(originals, painted, given)
    about = {"saved_model": model.path, "num_given": given, **params.as_dict()}
    return _written(workdir, "completions", painted, picture, about, animate)


def partly_given(images: np.ndarray, num_given: int) -> np.ndarray:
    """`images` uint8[N,H,W,3] with all but the first `num_given` raster pixels grey."""
    pixels = images.reshape(len(images), -1, 3).copy()
    pixels[:, num_given:] = _UNPAINTED
    return pixels.reshape(images.shape)


def completion_grid(originals: np.ndarray, painted: np.ndarray, num_given: int) -> np.ndarray:
    """A row for each original: original | what was given | its completions.

    Args:
        originals: uint8[N,H,W,3].
        painted: uint8[N*R,H,W,3], R completions of each, one after the other.
        num_given: Raster pixels.
    """
    completions = painted.reshape(len(originals), -1, *originals.shape[1:])
    given = partly_given(originals, num_given)
    rows = np.concatenate([originals[:, None], given[:, None], completions], axis=1)
    return grid(rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1])


def painting_frames(images: np.ndarray, num_given: int = 0) -> Iterator[np.ndarray]:
    """Yields pictures uint8[H',W',3] of `images` being painted in raster order."""
    length = images.shape[1] * images.shape[2]
    num_frames = min(_MOST_FRAMES, length - num_given) + 1
    for painted in np.linspace(num_given, length, num_frames).round().astype(int):
        yield grid(partly_given(images, painted))


def write_singles(folder: str, images: np.ndarray, params: SamplingParams) -> None:
    """Writes `seed_00017.png`, ... for images uint8[N,H,W,3], at their own size."""
    for number, image in enumerate(images):
        name = f"seed_{params.for_image(number).seed:05d}.png"
        write_png(os.path.join(folder, name), image)


def _written(
    workdir: str,
    name: str,
    painted: np.ndarray,
    picture: np.ndarray,
    about: dict,
    animate: bool,
) -> str:
    """Writes the files; says where they are. `about` is what the images depend on."""
    path = os.path.join(workdir, name)
    files.write_json(f"{path}.json", {"num_images": len(painted), **about})
    write_png(f"{path}.png", picture)
    write_singles(path, painted, SamplingParams(seed=about["seed"]))
    lines = [f"grid           {path}.png", f"single images  {path}{os.sep}"]
    if animate:
        frames = list(painting_frames(painted, about.get("num_given", 0)))
        film = f"{path}.gif" if _num_colours(frames[-1]) < _GIF_COLOURS else f"{path}.apng"
        write_animation(film, frames)
        lines.append(f"animation      {film}")
    return "\n".join(lines)


def _num_colours(picture: np.ndarray) -> int:
    return len(np.unique(picture.reshape(-1, 3), axis=0))


def _planned(model: SavedModel, batch_size: int | None, num_images: int) -> int:
    """Images at a time, told to people as well."""
    config = model.metadata["model"]
    size = memory.painting_batch(config, batch_size, num_images, runtime.available_memory())
    print(f"{num_images} images, {memory.announcement(config, size)}", file=sys.stderr)
    return size


def _check_positive(**arguments: int | None) -> None:
    for name, value in arguments.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is at least 1. Received: {name}={value}")
