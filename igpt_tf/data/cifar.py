"""CIFAR-10 and CIFAR-100 from the official python files, unpacked or as the .tar.gz."""

import io
import os
import pickle
import pickletools
import re
import tarfile

import numpy as np

from igpt_tf.data.sources import Source, array_examples, heldout_split, register
from igpt_tf.errors import InputError

_ADDRESS = "https://www.cs.toronto.edu/~kriz/"


@register
def cifar10(*, directory: str, image_size=(32, 32), heldout: float = 0.1, seed: int = 0) -> Source:
    """CIFAR-10: 50,000 training and 10,000 test images of 10 classes.

    Args:
        directory: The folder `cifar-10-batches-py`, or `cifar-10-python.tar.gz`. Where the folder
            is missing, the archive beside it is read.
        image_size: (H, W), at most (32, 32).
        heldout: Fraction of the training split held out as `valid`.
        seed: Random seed of that split.

    Raises:
        InputError: A file is missing or damaged, or holds anything but integer arrays and text.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html; paper, section 3.1 (10 % held out).
    """
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch", "batches.meta"]
    files = _read_files(directory, "cifar-10-python.tar.gz", names)
    meta = files.pop("batches.meta")
    parts = [_images_and_labels(files[name], "labels", directory) for name in files]
    *train_parts, test = parts
    train = [np.concatenate(arrays) for arrays in zip(*train_parts, strict=True)]
    class_names = _class_names(meta, "label_names", directory)
    return _source(train, test, class_names, directory, image_size, heldout, seed)


@register
def cifar100(*, directory: str, image_size=(32, 32), heldout: float = 0.1, seed: int = 0) -> Source:
    """CIFAR-100, as `cifar10` but with the 100 fine labels.

    Args:
        directory: The folder `cifar-100-python`, or `cifar-100-python.tar.gz`.
        image_size, heldout, seed: See `cifar10`.

    Raises:
        InputError: See `cifar10`.
    """
    files = _read_files(directory, "cifar-100-python.tar.gz", ["train", "test", "meta"])
    train, test = (
        _images_and_labels(files[name], "fine_labels", directory) for name in ("train", "test")
    )
    class_names = _class_names(files["meta"], "fine_label_names", directory)
    return _source(train, test, class_names, directory, image_size, heldout, seed)


def _source(train, test, class_names, directory, image_size, heldout, seed) -> Source:
    train, test = (
        array_examples(images, labels, image_size, len(class_names), directory)
        for images, labels in (train, test)
    )
    return Source(*heldout_split(train, heldout, seed), test, class_names)


def _read_files(directory: str, archive: str, names: list[str]) -> dict[str, dict]:
    """{name: unpickled dictionary} from the folder, or from the archive at or beside it."""
    beside = os.path.join(os.path.dirname(os.path.normpath(directory)), archive)
    if os.path.isdir(directory):
        contents = {name: _read_file(os.path.join(directory, name), archive) for name in names}
    elif os.path.isfile(directory) or os.path.isfile(beside):
        contents = _read_archive(directory if os.path.isfile(directory) else beside, names)
    else:
        raise InputError(
            f"no such folder; fetch {_ADDRESS}{archive} and unpack it there. "
            f"Received: directory={directory}"
        )
    return {name: _unpickle(contents[name], f"{directory}: {name}") for name in names}


def _read_file(path: str, archive: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InputError(
            f"a CIFAR file cannot be read ({error.strerror}); unpack {_ADDRESS}{archive} again. "
            f"Received: path={path}"
        ) from None


def _read_archive(path: str, names: list[str]) -> dict[str, bytes]:
    contents = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if member.isfile() and name in names:
                    contents[name] = archive.extractfile(member).read()
    # A cut gzip stream raises EOFError, a damaged one zlib.error, a damaged tar TarError.
    except Exception as error:
        raise InputError(
            f"the archive is damaged ({error}); fetch it again from {_ADDRESS}. Received: {path=}"
        ) from None
    missing = [name for name in names if name not in contents]
    if missing:
        raise InputError(
            f"the archive lacks {', '.join(missing)}; fetch it again from {_ADDRESS}. "
            f"Received: {path=}"
        )
    return contents


def _unpickle(content: bytes, origin: str) -> dict:
    """The dictionary in a CIFAR file, with text keys. Raises: InputError."""
    try:
        for operation, argument, _ in pickletools.genops(content):
            # The unpickler allocates as many entries as the largest number of a memo entry.
            if "PUT" in operation.name and argument > len(content):
                raise ValueError("an impossible memo entry")
        contents = _InertUnpickler(io.BytesIO(content), encoding="bytes").load()
        return {_text(key): value for key, value in contents.items()}
    except InputError as error:
        raise InputError(f"{error}. Received: file={origin}") from None
    # A damaged pickle can raise nearly anything (see the documentation of `pickle`).
    except Exception as error:
        raise InputError(
            f"a CIFAR file is damaged ({type(error).__name__}); fetch it again from {_ADDRESS}. "
            f"Received: file={origin}"
        ) from None


class _InertUnpickler(pickle.Unpickler):
    """Builds plain Python values and `_PickledArray`s, and refuses everything else.

    NumPy's own classes are not called: a forged `dtype` makes them take bytes for pointers.
    """

    def find_class(self, module, name):
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
            ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
            ("numpy", "ndarray"): _Ndarray,
            ("numpy", "dtype"): _PickledDtype,
            ("_codecs", "encode"): _encode_latin1,
        }
        if (module, name) not in allowed:
            raise InputError(
                f"this pickle asks for {module}.{name}, which no CIFAR file does; it was not run: "
                f"fetch the file again from {_ADDRESS}"
            )
        return allowed[module, name]


class _Ndarray:
    """Stands for `numpy.ndarray`."""


class _PickledDtype:
    """Stands for `numpy.dtype`: holds the content of the pickle, without effect."""

    def __init__(self, code, align=False, copy=False):
        self.code, self.state = code, None

    def __setstate__(self, state):
        self.state = state


class _PickledArray:
    """Stands for an array: holds the content of the pickle, without effect."""

    def __init__(self, kind, shape, code):
        self.state = None

    def __setstate__(self, state):
        self.state = state

    def to_array(self) -> np.ndarray:
        """The array. Raises InputError if it is not one of plain integers."""
        try:
            _, shape, dtype, is_fortran, content = self.state
            code, order = _text(dtype.code), _text(dtype.state[1])
            is_plain = re.fullmatch("[iu][1248]", code) and order in ("<", ">", "|", "=")
            is_plain = is_plain and type(shape) is tuple and type(content) is bytes
            if not is_plain or not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(code)
            array = np.frombuffer(content, np.dtype(order + code))
            return array.reshape(shape, order="F" if is_fortran else "C")
        except (TypeError, ValueError, AttributeError, IndexError, OverflowError):
            raise InputError(
                "an array in a CIFAR file is not one of integers, or not as long as it announces; "
                f"fetch the file again from {_ADDRESS}"
            ) from None


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How Python 3 pickles bytes in the old protocol; other codecs are refused."""
    if encoding != "latin1":
        raise InputError(f"this pickle asks for the codec {encoding!r}, which no CIFAR file does")
    return text.encode("latin1")


def _images_and_labels(contents: dict, key: str, origin) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = contents.get("data"), contents.get(key)
    try:
        pixels = pixels.to_array() if isinstance(pixels, _PickledArray) else np.empty(0)
    except InputError as error:
        raise InputError(f"{error}. Received: directory={origin}") from None
    if pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise InputError(
            f"a CIFAR file's data are not [N, 3072]; fetch it again from {_ADDRESS}. "
            f"Received: directory={origin}"
        )
    is_list = isinstance(labels, list) and len(labels) == len(pixels)
    if not is_list or not all(type(label) is int and abs(label) < 2**31 for label in labels):
        raise InputError(
            f"a CIFAR file lacks a label per image; fetch it again from {_ADDRESS}. "
            f"Received: directory={origin}, key={key}"
        )
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.asarray(labels)


def _class_names(meta: dict, key: str, origin) -> tuple[str, ...]:
    names = meta.get(key)
    if not isinstance(names, list) or not names:
        raise InputError(
            f"CIFAR's file of class names lacks them; fetch it again from {_ADDRESS}. "
            f"Received: directory={origin}, key={key}"
        )
    return tuple(_text(name) for name in names)


def _text(value) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
