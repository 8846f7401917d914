"""The one way in which files are written, JSON is read and image files are listed.

A file is written under a temporary name in its own folder, synced, renamed and its folder synced:
after a crash or a power failure it has either its old content or all of the new one.
"""

import atexit
import collections
import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import msgspec
import numpy as np

from igpt_tf.errors import InputError

# Limits of an image file, wherever one is read. A 108-megapixel photograph has 12,000 x 9,000.
MAX_FILE_BYTES = 2**27
MAX_FILE_PIXELS = 2**27

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")

TEMPORARY = ".part"  # suffix of files and folders that are still being written

_PATTERN_CHARACTERS = set("*?[]\\")


@contextlib.contextmanager
def atomic_write(path: str, mode: str = "wb") -> Iterator[IO]:
    """Opens a file that replaces `path` when the block ends without an error.

    Args:
        path: The file; its folder is created if needed.
        mode: "wb", or "w" for UTF-8 text.

    Example:
        with files.atomic_write("runs/digits/palette.npy") as file:
            numpy.save(file, centres)
    """
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    temporary = path + TEMPORARY
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    sync_folder(folder)


def lock(path: str, *, waiting: str | None = None) -> IO:
    """Opens and locks a file. Closing it, or the end of the process, releases the lock.

    Args:
        path: The file; created if needed, and left behind. Its folder exists.
        waiting: What to print before waiting for another process that holds the lock.

    Raises:
        BlockingIOError: Another process holds the lock, and `waiting` is None.
    """
    file = open(path, "w")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise
            print(waiting, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
    except BaseException:
        file.close()
        raise
    return file


def write_text(path: str, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_json(path: str, content) -> None:
    """Writes sorted, indented JSON atomically. NumPy numbers and arrays become plain ones.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(content, indent=2, sort_keys=True, default=_as_plain, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: str, *, description: str, fix: str, schema: Any = Any):
    """Reads and validates a JSON file.

    Args:
        path: The file.
        description: What the file is, for the error, e.g. "the index of the shards".
        fix: What the user can do about a damaged file.
        schema: The type of the content, e.g. a `msgspec.Struct` or `dict[str, int]`. Names that
            occur twice, integers that a float cannot hold, NaN and text that is not Unicode are
            rejected with any schema.

    Returns:
        The content as `schema`.

    Raises:
        InputError: The file is missing, unreadable, not JSON or not of the schema.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # opening a FIFO would wait
            raise ValueError("it is not a regular file")
        with open(path, "rb") as file:
            content = file.read()
        json.loads(content, object_pairs_hook=_refuse_duplicates)
        return msgspec.json.decode(content, type=schema)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            f"{description} cannot be read ({' '.join(reason.split())}); {fix}. Received: {path}"
        ) from None


def local_path(path: str, name: str) -> str:
    """Expands `~` at the start of a path. Text that is not a path is returned as it is.

    Args:
        path: What the user gave.
        name: The flag or parameter, for the error.

    Raises:
        InputError: It is the address of a file in the cloud, or there is no such user.
    """
    if re.match(r"(gs|s3|hdfs|az|abfss?)://", path):
        raise InputError(
            "only local files can be read and written; copy the files, or mount the bucket (for "
            f"example with gcsfuse or s3fs). Received: {name}={path}"
        )
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise InputError(f"there is no such home folder. Received: {name}={path}")
    return expanded


@dataclasses.dataclass(frozen=True)
class ImageListing:
    """The files in a folder and below it.

    Attributes:
        images: Paths below the folder of the files that end like an image, sorted.
        folders: Paths below the folder of the folders in it.
        left_out: {reason: [paths below the folder]} of all other files.
    """

    images: list[str]
    folders: list[str]
    left_out: dict[str, list[str]]


def list_folder(folder: str) -> ImageListing:
    """Lists the image files in a folder and all folders below it.

    A file is an image by its ending, in any case (`IMAGE_ENDINGS`). Left out are hidden files and
    folders (`.cache`, `._photo.png`, `__MACOSX`), what is not a regular file, links to folders
    that were listed already, and files of other endings.

    Raises:
        InputError: A folder cannot be read.
    """
    images, folders, left_out, seen = [], [], collections.defaultdict(list), set()

    def visit(below: str) -> None:
        path = os.path.join(folder, below)
        try:
            status = os.stat(path)
            with os.scandir(path) as scan:
                entries = sorted(scan, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            raise InputError(
                f"a folder of images cannot be read ({error.strerror}); allow it to be read, or "
                f"remove it. Received: folder={path}"
            ) from None
        if (status.st_dev, status.st_ino) in seen:
            left_out["a link to a folder that was listed already"].append(below)
            return
        seen.add((status.st_dev, status.st_ino))
        folders.append(below)
        for entry in entries:
            name = os.path.join(below, entry.name)
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                left_out["hidden"].append(name)
            elif entry.is_dir():
                visit(name)
            elif not entry.is_file():
                left_out["not a regular file, or a broken link"].append(name)
            elif entry.name.lower().endswith(IMAGE_ENDINGS):
                images.append(name)
            else:
                left_out["with an ending other than " + ", ".join(IMAGE_ENDINGS)].append(name)

    visit("")
    return ImageListing(images, folders[1:], dict(left_out))


def list_images(paths: Sequence[str]) -> list[str]:
    """The image files that a user named, one by one or by their folders.

    Args:
        paths: Files, of any ending, and folders, which are listed as `list_folder` does.

    Returns:
        Paths of files, in the order of `paths`, those of a folder sorted.

    Raises:
        InputError: A path does not exist or is not a file, or a folder holds no images.

    Example:
        list_images(["photos", "more/cat.png"])
    """
    found = []
    for path in paths:
        if os.path.isdir(path):
            images = list_folder(path).images
            if not images:
                raise InputError(
                    f"the folder holds no images ({', '.join(IMAGE_ENDINGS)}). "
                    f"Received: folder={path}"
                )
            found += [os.path.join(path, name) for name in images]
        elif os.path.isfile(path):
            found.append(path)
        else:
            problem = "it is not a regular file" if os.path.exists(path) else "No such file"
            raise InputError(f"an image file cannot be read ({problem}). Received: file={path}")
    return found


def replace_folder(source: str, target: str) -> None:
    """Renames the finished folder `source` to `target`, replacing a folder of that name.

    Every file in `source` is synced first.
    """
    for folder, _, names in os.walk(source):
        for name in names:
            _sync(os.path.join(folder, name))
        sync_folder(folder)
    replaced = source + ".old"
    shutil.rmtree(replaced, ignore_errors=True)
    if os.path.exists(target):
        os.rename(target, replaced)
    os.rename(source, target)
    sync_folder(os.path.dirname(target) or ".")
    shutil.rmtree(replaced, ignore_errors=True)


def sync_folder(path: str) -> None:
    """Makes renames in a folder durable, where the file system supports it."""
    with contextlib.suppress(OSError):
        _sync(path)


@functools.cache
def path_without_patterns(path: str) -> str:
    """Returns a path to the same folder that TensorFlow does not take for a pattern.

    TensorFlow treats the path of a checkpoint as a pattern when it restores or removes it, so a
    folder such as `runs/lr[0.1]` is not found. Such a path is replaced by a symbolic link, which is
    removed when the process ends.

    Raises:
        InputError: No link can be made.
    """
    if not set(path) & _PATTERN_CHARACTERS:
        return path
    try:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        link = os.path.join(folder, "link")
        os.symlink(os.path.abspath(path), link)
    except OSError as error:
        raise InputError(
            "TensorFlow cannot read from a path with * ? [ ] or \\, and no link to it can be made "
            f"({error}); choose another path. Received: {path}"
        ) from None
    if set(link) & _PATTERN_CHARACTERS:
        raise InputError(
            "TensorFlow cannot read from a path with * ? [ ] or \\; choose another path, or "
            f"another folder for temporary files (TMPDIR). Received: {path}"
        )
    return link


def make_workdir(path: str) -> str:
    """Creates a tool's folder if needed and checks that it can be written; returns `path`.

    Programs call it before their work, which would be lost if it could not be stored.

    Raises:
        InputError: The folder cannot be created or written.
    """
    action = "created"
    try:
        os.makedirs(path, exist_ok=True)
        action = "written"
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"1")
    except OSError as error:
        raise InputError(
            f"the workdir cannot be {action} ({error.strerror}); choose another folder or fix "
            f"this one. Received: workdir={path}"
        ) from None
    return path


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise ValueError(f"the name {name[:100]!r} occurs twice")
        names.add(name)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_plain(value):
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"not JSON: {type(value)}")
