"""Galleries: samples, completions and in-paintings of a SavedModel as picture files."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence

import gin
import numpy as np
from tqdm import tqdm

from igpt_tf import config, files, runtime
from igpt_tf.data import Source
from igpt_tf.data.decoding import load_images
from igpt_tf.errors import InputError
from igpt_tf.evaluation.plots import run_name
from igpt_tf.evaluation.splits import resolve_source
from igpt_tf.image_grid import grid, hide_unknown, known_pixels, write_animation, write_png
from igpt_tf.sampling.decoding import peak_bytes
from igpt_tf.sampling.params import PLAIN_SAMPLING, SamplingParams, check_limits, parse_num_given
from igpt_tf.sampling.sampler import NUM_ROUNDS, Sampler, run_in_branches
from igpt_tf.savedmodel.load import SavedModel, load_model

_MAX_FRAMES = 128
_GIF_COLOURS = 256  # per frame, the grey included
_BATCH_SIZE = 16  # a larger one is hardly faster, and shows progress less often
_MEMORY_SHARE = 0.8  # of the available memory, for one batch


@gin.configurable
def sample(
    *,
    saved_model: str,
    workdir: str,
    params: SamplingParams = PLAIN_SAMPLING,
    num_images: int = 16,
    images: Sequence[str] | None = None,
    source: Source | None = None,
    num_given: str | None = None,
    known: str | None = None,
    num_rounds: int | None = None,
    completions: int | None = None,
    batch_size: int | None = None,
    animate: bool = False,
    jit_compile: bool = False,
) -> str:
    """Writes new images, or completions of images if `images`, `num_given`, `known` or
    `completions` is given.

    Image i is generated with seed + i, whatever the batch size. Completed images are held-out
    images of the model's data set, unless `images` or `source` names others.

    Args:
        saved_model: Path of the model.
        workdir: Folder for `samples.png` or `completions.png`, a JSON file of its settings,
            the single images and the animation.
        params: How tokens are chosen.
        num_images: Number of images to generate, or maximum number of images to complete.
        images: Image files and folders to complete.
        source: Data set whose held-out images are completed; None for the model's training data.
        num_given: Share of the rows to keep, e.g. "0.5" (the default), or number of rows.
        known: An image file whose bright pixels are kept and whose dark pixels are filled, for
            masked models, instead of `num_given`.
        num_rounds: Rounds of in-painting with `known`, 8 if None; more are slower and better.
        completions: Completions per image; None for 4.
        batch_size: Images at a time; None for 16, or fewer if the memory is short.
        animate: Also write an animation of the images being generated in raster order: a GIF, or
            an APNG where a GIF has too few colours.
        jit_compile: Compile with XLA: a slow start, then faster. For many images.

    Returns:
        A description of the files for the terminal.

    Raises:
        InputError: The model cannot do this, an argument is out of range, an image does not fit
            the model, or the folder cannot be written.

    Example:
        sample(saved_model="runs/digits/export", workdir="runs/digits/sample", num_given="0.5")
    """
    config.refuse_unread_bindings()
    _check_positive(num_images=num_images, completions=completions, batch_size=batch_size)
    if num_rounds is not None and known is None:
        raise InputError(
            "num_rounds is for in-painting with a mask; pass --known too, or leave it out (with "
            f"--num_given a masked model takes {NUM_ROUNDS} rounds). Received: {num_rounds=}"
        )
    files.make_workdir(workdir)
    model = SavedModel(saved_model)
    if animate and (known or model.metadata["completion"] != "raster order"):
        raise InputError(
            "an animation shows images being generated in raster order, which in-painting is not; "
            f"leave out --animate. Received: animate=True, saved_model={model.path}"
        )
    gallery = _Gallery(model, workdir, params, batch_size, animate, jit_compile)
    if all(argument is None for argument in (images, num_given, known, completions)):
        return gallery.write_samples(num_images)
    originals, note = load_originals(model, images, source, num_images)
    completions = completions or 4
    if known is None:
        text = gallery.write_completions(originals, completions, num_given or "0.5")
    elif num_given is not None:
        raise InputError(
            "pass either --num_given, for rows, or --known, for the bright pixels of a mask, not "
            f"both. Received: {num_given=}, {known=}"
        )
    else:
        rounds = NUM_ROUNDS if num_rounds is None else num_rounds
        text = gallery.write_inpaintings(originals, completions, known, rounds)
    return text + note


class CompiledSignatures:
    """`sample`, `complete` and `inpaint` of a SavedModel, compiled with XLA.

    Args:
        model: The model; its weights are used, not its graphs.
    """

    def __init__(self, model: SavedModel):
        network, self._palette, _ = load_model(model.path)
        self._sampler = Sampler(network, jit_compile=True)

    def signature(self, name: str) -> Callable[..., dict]:
        """As `SavedModel.signature`."""
        return {"sample": self._sample, "complete": self._complete, "inpaint": self._inpaint}[name]

    def _sample(self, *, num_images, **params) -> dict:
        return self._decoded(self._sampler.sample(num_images, SamplingParams(**params)))

    def _complete(self, *, images, num_given, **params) -> dict:
        tokens = self._palette.encode(images)
        return self._decoded(self._sampler.complete(tokens, num_given, SamplingParams(**params)))

    def _inpaint(self, *, images, known, num_rounds, **params) -> dict:
        tokens = self._palette.encode(images)
        params = SamplingParams(**params)
        known = known.reshape(tokens.shape)
        return self._decoded(self._sampler.inpaint(tokens, known, params, num_rounds=num_rounds))

    def _decoded(self, tokens: np.ndarray) -> dict:
        return {"images": self._palette.decode(tokens, self._sampler.model.image_size)}


def generate(
    call: Callable[..., dict],
    params: SamplingParams,
    num_images: int,
    batch_size: int,
    title: str,
    **inputs,
) -> np.ndarray:
    """Calls a signature batch by batch; image i has the seed of `params.for_image(i)`.

    Args:
        call: The signature `sample`, `complete` or `inpaint`.
        params: How tokens are chosen.
        num_images: N.
        batch_size: Images per batch; a batch is split further if several operations run in
            parallel (`runtime.num_parallel_ops`).
        title: Title of the progress bar.
        **inputs: Further inputs; arrays [N,...] are split like the batches.

    Returns:
        uint8[N,H,W,3].
    """

    def generate_part(part: slice) -> np.ndarray:
        arguments = {
            name: value[part] if isinstance(value, np.ndarray) else value
            for name, value in inputs.items()
        }
        if not inputs:
            arguments = {"num_images": part.stop - part.start}
        return call(**arguments, **params.for_image(part.start).as_dict())["images"]

    batches = []
    with tqdm(total=num_images, unit="image", desc=title) as progress:
        for start in range(0, num_images, batch_size):
            batch = range(start, min(start + batch_size, num_images))
            batches.append(run_in_branches(generate_part, batch, runtime.num_parallel_ops()))
            progress.update(len(batch))
    return np.concatenate(batches)


def sampling_batch_size(
    config: dict, requested: int | None, num_images: int, available: float
) -> int:
    """Images to generate at a time.

    Args:
        config: The model's configuration, as in its metadata.
        requested: The user's choice; None to choose by the memory.
        num_images: Number of images to generate in all.
        available: Bytes, see `runtime.available_memory`.

    Raises:
        InputError: The requested number does not fit into the memory, or not even one image does.
    """
    size = min(requested or _BATCH_SIZE, num_images)
    while size > 1 and requested is None and peak_bytes(config, size) > _MEMORY_SHARE * available:
        size //= 2
    if peak_bytes(config, size) > _MEMORY_SHARE * available:
        raise InputError(
            f"{size} images at a time need {_gigabytes(peak_bytes(config, size))} of memory and "
            f"{_gigabytes(available)} are available; choose a smaller batch_size, or a larger "
            f"machine. Received: batch_size={requested}"
        )
    return size


def load_originals(
    model: SavedModel, paths: Sequence[str] | None, source: Source | None, num_images: int
) -> tuple[np.ndarray, str]:
    """At most `num_images` images to complete, and a note if there are more.

    Returns:
        (uint8[N,H,W,3], "" or a line for the terminal).

    Raises:
        InputError: There are no images there, or one cannot be read.
    """
    if paths is None:
        heldout = resolve_source(model, source, "sample").valid
        return heldout.take(np.arange(min(num_images, len(heldout)))).arrays()[0], ""
    for path in paths:
        if "," in path and not os.path.exists(path):
            raise InputError(
                "the path does not exist; repeat the flag for several paths: --images=A "
                f"--images=B. Received: images={path}"
            )
    found = files.list_images(paths)
    note = ""
    if len(found) > num_images:
        note = (
            f"\ncompleted      the first {num_images} of {len(found)} images "
            f"(--num_images={len(found)} for all)"
        )
    return load_images(found[:num_images], model.image_size), note


def raster_mask(num_given: int, image_size: tuple[int, int]) -> np.ndarray:
    """bool[H,W]: the first `num_given` pixels in raster order."""
    return (np.arange(np.prod(image_size)) < num_given).reshape(image_size)


def completion_grid(
    originals: np.ndarray, completed: np.ndarray, known: np.ndarray, title: str = ""
) -> np.ndarray:
    """A row per original image: the original, what was given, its completions.

    Args:
        originals: uint8[N,H,W,3].
        completed: uint8[N*R,H,W,3], the R completions of each original in succession.
        known: bool[H,W], the given pixels.
        title: Text above the grid.
    """
    completions = completed.reshape(len(originals), -1, *originals.shape[1:])
    num_completions = completions.shape[1]
    rows = np.concatenate(
        [originals[:, None], hide_unknown(originals, known)[:, None], completions], axis=1
    )
    numbered = [f"completion {number + 1}" for number in range(num_completions)]
    captions = ["original", "given", *(numbered if num_completions > 1 else ["completion"])]
    return grid(
        rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1], title=title, captions=captions
    )


def raster_frames(images: np.ndarray, num_given: int = 0) -> Iterator[np.ndarray]:
    """Yields grids uint8[H',W',3] that show `images` being generated in raster order."""
    image_size = images.shape[1:3]
    length = int(np.prod(image_size))
    num_frames = min(_MAX_FRAMES, length - num_given) + 1
    for generated in np.linspace(num_given, length, num_frames).round().astype(int):
        yield grid(hide_unknown(images, raster_mask(generated, image_size)))


class _Gallery:
    """Generates images and writes them; arguments as in `sample`."""

    def __init__(self, model: SavedModel, workdir, params, batch_size, animate, jit_compile):
        self._model = model
        self._signatures = CompiledSignatures(model) if jit_compile else model
        self._workdir = workdir
        self._params = params
        self._batch_size = batch_size
        self._animate = animate
        self._run = run_name({"saved_model": model.path, "step": model.metadata.get("step")})

    def write_samples(self, num_images: int) -> str:
        """Writes new images."""
        check_limits(num_images=min(num_images, _BATCH_SIZE))
        if self._model.metadata["completion"] != "raster order":
            raise InputError(
                "a masked model cannot sample whole images, only complete them: pass --num_given "
                f"or --known. Received: saved_model={self._model.path}"
            )
        generated = self._generate("sample", num_images)
        picture = grid(generated, title=f"{self._run}: samples{self._settings()}")
        return self._write("samples", generated, picture, {}, num_given=0)

    def write_completions(self, originals: np.ndarray, completions: int, num_given: str) -> str:
        """Writes completions of the first rows."""
        given = parse_num_given(num_given, self._model.image_size)
        known = raster_mask(given, self._model.image_size)
        repeated = originals.repeat(completions, axis=0)
        completed = self._generate("complete", len(repeated), images=repeated, num_given=given)
        picture = self._grid(originals, completed, known)
        return self._write("completions", completed, picture, {"num_given": given}, given)

    def write_inpaintings(self, originals, completions: int, mask: str, num_rounds: int) -> str:
        """Writes in-paintings of the dark pixels of the image file `mask`."""
        check_limits(num_rounds=num_rounds)
        if self._model.metadata["completion"] != "in-painting":
            raise InputError(
                "an autoregressive model cannot in-paint, only complete the rows below: pass "
                f"--num_given. Received: known={mask}, saved_model={self._model.path}"
            )
        [image] = load_images([mask], self._model.image_size)
        known = known_pixels(image, mask)
        repeated = originals.repeat(completions, axis=0)
        everywhere = np.broadcast_to(known, repeated.shape[:3])
        completed = self._generate(
            "inpaint", len(repeated), images=repeated, known=everywhere, num_rounds=num_rounds
        )
        picture = self._grid(originals, completed, known)
        inputs = {"known": mask, "num_rounds": num_rounds}
        return self._write("completions", completed, picture, inputs)

    def _generate(self, signature: str, num_images: int, **inputs) -> np.ndarray:
        config = self._model.metadata["model"]
        available = runtime.available_memory()
        size = sampling_batch_size(config, self._batch_size, num_images, available)
        memory = _gigabytes(peak_bytes(config, size))
        print(f"{num_images} images, {size} at a time in at most {memory}", file=sys.stderr)
        call = self._signatures.signature(signature)
        return generate(call, self._params, num_images, size, signature, **inputs)

    def _grid(self, originals, completed, known) -> np.ndarray:
        return completion_grid(originals, completed, known, f"{self._run}{self._settings()}")

    def _settings(self) -> str:
        """The parameters that are not the paper's, for titles."""
        plain = PLAIN_SAMPLING.as_dict()
        changed = {k: v for k, v in self._params.as_dict().items() if v != plain[k]}
        return "".join(f", {name} {value:g}" for name, value in changed.items())

    def _write(self, name: str, generated, picture, inputs: dict, num_given: int = 0) -> str:
        """Writes the files of a gallery; returns a description."""
        path = os.path.join(self._workdir, name)
        description = {
            "num_images": len(generated),
            "saved_model": self._model.path,
            **inputs,
            **self._params.as_dict(),
        }
        files.write_json(f"{path}.json", description)
        write_png(f"{path}.png", picture)
        for index, image in enumerate(generated):
            seed = self._params.for_image(index).seed
            write_png(os.path.join(path, f"seed_{seed:05d}.png"), image)
        lines = [f"grid           {path}.png", f"single images  {path}{os.sep}"]
        if self._animate:
            frames = list(raster_frames(generated, num_given))
            num_colours = len(np.unique(frames[-1].reshape(-1, 3), axis=0))
            animation = f"{path}.gif" if num_colours < _GIF_COLOURS else f"{path}.apng"
            write_animation(animation, frames)
            lines.append(f"animation      {animation}")
        return "\n".join(lines)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


def _check_positive(**arguments: int | None) -> None:
    for name, value in arguments.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be 1 or more. Received: {name}={value}")
