"""What the client program asks, and the files it makes of the answers."""

import os

import numpy as np

from igpt_tf import files, formatting
from igpt_tf.image_grid import enlarge, grid, write_png
from igpt_tf.sampling.params import SamplingParams, parse_num_given
from igpt_tf.serving import files as image_files
from igpt_tf.serving.client import Client


def features(client: Client, workdir: str, *, images: list[str]) -> str:
    """features.json: of each file, L+1 rows of D numbers."""
    paths = image_files.find(images)
    found = client.features([image_files.read(path) for path in paths])["features"]
    _write(workdir, "features", {"files": paths, "features": found})
    return f"{len(paths)} files, {found.shape[1]} layers of {found.shape[2]} features"


def classify(client: Client, workdir: str, *, images: list[str]) -> str:
    """classify.json: of each file, its class and the probabilities of all."""
    paths = image_files.find(images)
    answer = client.classify([image_files.read(path) for path in paths])
    _write(workdir, "classify", {"files": paths, **answer})
    best = answer["probabilities"].max(axis=1)
    rows = zip(paths, answer["labels"], (f"{share:.3f}" for share in best), strict=True)
    return formatting.table(("file", "class", "probability"), list(rows))


def score(client: Client, workdir: str, *, images: list[str]) -> str:
    """score.json, and score.png: the files above their surprise, white where it is highest."""
    paths = image_files.find(images)
    pixels = image_files.pixels(paths, client.image_size)
    answer = client.score(pixels)
    _write(workdir, "score", {"files": paths, **answer})
    surprise = answer["surprise"]
    maps = np.rint(255 * np.clip(surprise / max(surprise.max(), 1e-9), 0, 1)).astype("uint8")
    both = np.concatenate([pixels, np.repeat(maps[..., None], 3, axis=-1)])
    write_png(os.path.join(workdir, "score.png"), grid(both, columns=len(paths)))
    nats = (f"{value:.4f}" for value in answer["nats_per_token"])
    return formatting.table(("file", "nats/token"), list(zip(paths, nats, strict=True)))


def sample(client: Client, workdir: str, *, num_images: int, **choice) -> str:
    """sample.json, sample.png, and each sample with its seed in the name."""
    answer = client.sample(num_images, **choice)
    _write(workdir, "sample", {**choice, "tokens": answer["tokens"]})
    _write_each(workdir, "sample", answer["images"], choice["seed"])
    write_png(os.path.join(workdir, "sample.png"), grid(answer["images"]))
    return f"{num_images} samples"


def complete(client: Client, workdir: str, *, images: list[str], num_given: str, **choice) -> str:
    """complete.json, each completion, and complete.png: the files above their completions."""
    paths = image_files.find(images)
    given = parse_num_given(num_given, client.image_size)
    pixels = image_files.pixels(paths, client.image_size)
    answer = client.complete(pixels, given, **choice)
    about = {**choice, "files": paths, "num_given": given}
    _write(workdir, "complete", {**about, "tokens": answer["tokens"]})
    _write_each(workdir, "complete", answer["images"], choice["seed"])
    both = np.concatenate([pixels, answer["images"]])
    write_png(os.path.join(workdir, "complete.png"), grid(both, columns=len(paths)))
    return f"{len(paths)} completions, {given} pixels given"


QUESTIONS = {
    function.__name__: function for function in (features, classify, score, sample, complete)
}


def _write(workdir: str, name: str, answer: dict) -> None:
    files.write_json(os.path.join(workdir, f"{name}.json"), answer)


def _write_each(workdir: str, name: str, images: np.ndarray, seed: int) -> None:
    for number, image in enumerate(images):
        file = f"{name}_{number:04}_seed_{SamplingParams(seed).for_image(number).seed}.png"
        write_png(os.path.join(workdir, file), enlarge(image[None])[0])
