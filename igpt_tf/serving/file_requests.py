"""Requests about image files, as `tools.serving_client` sends them; answers as JSON and PNG files.

A file that cannot be used is left out and named; the answers for the others are kept.

`score`, `complete` and `inpaint` decode the files here, with TensorFlow. `features` and `classify`
send them as they are, and `sample` sends none: these do not import TensorFlow.
"""

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from igpt_tf import files, formatting, runtime
from igpt_tf.errors import InputError
from igpt_tf.image_grid import enlarge, grid, hide_unknown, known_pixels, write_png
from igpt_tf.sampling.params import MAX_IMAGES, SamplingParams, parse_num_given
from igpt_tf.serving.client import Client
from igpt_tf.serving.transports import RequestRefused

_NUM_NAMED = 3  # files left out that an error names


@dataclasses.dataclass(frozen=True)
class Report:
    """What a request has written.

    Attributes:
        summary: For people.
        num_files: Number of image files of the request.
        left_out: File -> reason, of the files without an answer.
    """

    summary: str
    num_files: int = 0
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def check(self, workdir: str) -> None:
        """Raises an InputError that names the files left out, if there are any."""
        if not self.left_out:
            return
        named = [f"{path} ({reason})" for path, reason in self.left_out.items()]
        more = len(named) - _NUM_NAMED
        listed = "; ".join(named[:_NUM_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise InputError(
            f"{len(named)} of {self.num_files} files were left out, the answers for the others are "
            f"in the workdir: {listed}. Received: workdir={workdir}"
        )


def features(client: Client, workdir: str, *, images: list[str]) -> Report:
    """Writes features.json: L+1 rows of D numbers per file."""
    paths, answer, report = _send_files(client.features, client.batch_size, images)
    _write_json(workdir, "features", report, {"files": paths, **answer})
    num_files, num_layers, hidden_dim = answer["features"].shape
    summary = f"{num_files} files, {num_layers} layers of {hidden_dim} features"
    return dataclasses.replace(report, summary=summary)


def classify(client: Client, workdir: str, *, images: list[str]) -> Report:
    """Writes classify.json: the class and the probabilities of all classes per file."""
    paths, answer, report = _send_files(client.classify, client.batch_size, images)
    _write_json(workdir, "classify", report, {"files": paths, **answer})
    best = (f"{probability:.3f}" for probability in answer["probabilities"].max(axis=1))
    rows = list(zip(paths, answer["labels"], best, strict=True))
    summary = formatting.table(("file", "class", "probability"), rows)
    return dataclasses.replace(report, summary=summary)


def score(client: Client, workdir: str, *, images: list[str]) -> Report:
    """Writes score.json and score.png: the images above their surprise, which is white at most."""
    request = _DecodedFiles(client, images)
    answer = request.keep(client.score(request.images))
    _write_json(workdir, "score", request.report, {"files": request.kept_paths, **answer})
    surprise = answer["surprise"]
    maps = np.rint(255 * np.clip(surprise / max(surprise.max(), 1e-9), 0, 1)).astype("uint8")
    _write_rows(workdir, "score", request.kept_images, maps[..., None].repeat(3, axis=-1))
    nats = (f"{value:.4f}" for value in answer["nats_per_token"])
    rows = list(zip(request.kept_paths, nats, strict=True))
    summary = formatting.table(("file", "nats/token"), rows)
    return dataclasses.replace(request.report, summary=summary)


def sample(client: Client, workdir: str, *, num_images: int, params: SamplingParams) -> Report:
    """Writes sample.json, sample.png, and each sample with its seed in the name."""
    answer = client.sample(num_images, params)
    report = Report(f"{num_images} samples")
    content = {**dataclasses.asdict(params), "tokens": answer["tokens"]}
    _write_json(workdir, "sample", report, content)
    _write_each(workdir, "sample", answer["images"], params, range(num_images))
    write_png(os.path.join(workdir, "sample.png"), grid(answer["images"]))
    return report


def complete(
    client: Client, workdir: str, *, images: list[str], num_given: str, params: SamplingParams
) -> Report:
    """Writes complete.json, each completion, and complete.png: images above their completions.

    Args:
        client: The client.
        workdir: Where the files go.
        images: Image files and folders of them.
        num_given: What is kept, as text: see `parse_num_given`.
        params: Sampling parameters; image i uses seed + i, whatever other files are left out.
    """
    given = parse_num_given(num_given, client.image_size)
    request = _DecodedFiles(client, images)
    answer = request.keep(client.complete(request.images, given, params))
    content = {**dataclasses.asdict(params), "files": request.kept_paths, "num_given": given}
    _write_json(workdir, "complete", request.report, {**content, "tokens": answer["tokens"]})
    _write_each(workdir, "complete", answer["images"], params, request.kept)
    _write_rows(workdir, "complete", request.kept_images, answer["images"])
    summary = f"{len(request.kept)} completions, {given} pixels given"
    return dataclasses.replace(request.report, summary=summary)


def inpaint(
    client: Client,
    workdir: str,
    *,
    images: list[str],
    known: str,
    num_rounds: int,
    params: SamplingParams,
) -> Report:
    """Writes inpaint.json, each result, and inpaint.png: images, what is known, results.

    Args:
        client: The client, of a masked model.
        workdir: Where the files go.
        images: Image files and folders of them.
        known: An image file, bright where pixels are kept and dark where they are generated. It
            is resized and cropped as the images are.
        num_rounds: Number of forward passes.
        params: Sampling parameters, as in `complete`.
    """
    mask = known_pixels(_decode(known, client.image_size), known)
    request = _DecodedFiles(client, images)
    masks = np.repeat(mask[None], len(request.images), axis=0)
    answer = request.keep(client.inpaint(request.images, masks, params, num_rounds))
    content = {
        **dataclasses.asdict(params),
        "files": request.kept_paths,
        "known": known,
        "num_rounds": num_rounds,
        "tokens": answer["tokens"],
    }
    _write_json(workdir, "inpaint", request.report, content)
    _write_each(workdir, "inpaint", answer["images"], params, request.kept)
    shown = hide_unknown(request.kept_images, mask)
    _write_rows(workdir, "inpaint", request.kept_images, shown, answer["images"])
    summary = f"{len(request.kept)} images in-painted, {mask.sum()} of {mask.size} pixels known"
    return dataclasses.replace(request.report, summary=summary)


REQUESTS = {
    function.__name__: function
    for function in (features, classify, score, sample, complete, inpaint)
}


class _DecodedFiles:
    """Image files at the model's size.

    A file that cannot be decoded is replaced by a black image until its answer is dropped, so that
    the others keep their places and so their seeds.

    Attributes:
        images: uint8[N,H,W,3], black where a file was left out.
        kept: Indices of the files that were decoded.
        kept_paths, kept_images: These files and their images.
        report: `Report` without a summary.

    Raises:
        InputError: There are no files, or none can be decoded.
    """

    def __init__(self, client: Client, images: list[str]):
        paths = list_images(images)
        self.images = np.zeros((len(paths), *client.image_size, 3), "uint8")
        errors = {}
        for index, path in enumerate(paths):
            try:
                self.images[index] = _decode(path, client.image_size)
            except InputError as error:
                errors[index] = error
        self.report = _report(paths, errors)
        self.kept = [index for index in range(len(paths)) if index not in errors]
        self.kept_paths = [paths[index] for index in self.kept]
        self.kept_images = self.images[self.kept]

    def keep(self, answer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Drops the answers for the files left out."""
        return {name: array[self.kept] for name, array in answer.items()}


def _send_files(
    send: Callable[[list[bytes]], dict[str, np.ndarray]], batch_size: int, images: list[str]
) -> tuple[list[str], dict[str, np.ndarray], Report]:
    """Sends files as they are. If the server refuses a batch, each of its files is sent alone.

    Returns:
        (files with an answer, their answers, report without a summary).
    """
    paths = list_images(images)
    contents, answers, errors = {}, {}, {}
    for index, path in enumerate(paths):
        try:
            contents[index] = read_image_file(path)
        except InputError as error:
            errors[index] = error
    readable = list(contents)
    batches = [readable[at : at + batch_size] for at in range(0, len(readable), batch_size)]
    while batches:
        batch = batches.pop(0)
        try:
            answer = send([contents[index] for index in batch])
        except RequestRefused as error:
            if len(batch) == 1:
                errors[batch[0]] = InputError(f"{error}. Received: file={paths[batch[0]]}")
            else:
                batches = [[index] for index in batch] + batches
            continue
        for row, index in enumerate(batch):
            answers[index] = {name: array[row] for name, array in answer.items()}
    report = _report(paths, errors)
    kept = sorted(answers)
    joined = {name: np.stack([answers[i][name] for i in kept]) for name in answers[kept[0]]}
    return [paths[index] for index in kept], joined, report


def _report(paths: list[str], errors: dict[int, InputError]) -> Report:
    """A report without a summary. Raises: InputError: No file is left."""
    if len(errors) == len(paths):
        raise next(iter(errors.values()))
    reasons = {paths[i]: str(error).split(". Received: ")[0] for i, error in errors.items()}
    return Report("", len(paths), reasons)


def list_images(paths: list[str] | None) -> list[str]:
    """Returns image files: those named and those in the folders named.

    Raises:
        InputError: There are none, or too many.
    """
    found = files.list_images(paths or ())
    if not 1 <= len(found) <= MAX_IMAGES:
        raise InputError(
            f"name 1 to {MAX_IMAGES} image files, or folders of them. "
            f"Received: {len(found)} files, images={paths}"
        )
    return found


def read_image_file(path: str) -> bytes:
    """Returns the content of a file that may be sent. The server decodes it.

    Raises:
        InputError: It cannot be read, is empty or too large.
    """
    try:
        num_bytes = os.path.getsize(path)
        if not 0 < num_bytes <= files.MAX_FILE_BYTES:
            raise InputError(
                f"an image file must have 1 to {files.MAX_FILE_BYTES} bytes. "
                f"Received: bytes={num_bytes}, path={path}"
            )
        with open(path, "rb") as file:
            return file.read(files.MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(
            f"an image file cannot be read ({error.strerror}). Received: path={path}"
        ) from None


def _decode(path: str, image_size: tuple[int, int]) -> np.ndarray:
    """Returns uint8[H,W,3], resized and cropped as for training."""
    runtime.import_tensorflow()
    from igpt_tf.data.decoding import decode_bytes

    return decode_bytes(read_image_file(path), image_size, name=path)


def _write_json(workdir: str, name: str, report: Report, content: dict) -> None:
    if report.left_out:
        content = {**content, "left_out": report.left_out}
    files.write_json(os.path.join(workdir, f"{name}.json"), content)


def _write_each(
    workdir: str, name: str, images: np.ndarray, params: SamplingParams, indices
) -> None:
    """Writes images of the request, each with its index and its seed in the name."""
    for index, image in zip(indices, images, strict=True):
        file = f"{name}_{index:04}_seed_{params.for_image(index).seed}.png"
        write_png(os.path.join(workdir, file), enlarge(image[None])[0])


def _write_rows(workdir: str, name: str, *rows: np.ndarray) -> None:
    """Writes rows of images uint8[N,H,W,3] above each other."""
    picture = grid(np.concatenate(rows), columns=len(rows[0]))
    write_png(os.path.join(workdir, f"{name}.png"), picture)
