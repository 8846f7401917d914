"""The signatures of a SavedModel: one table of names, inputs, outputs and limits.

The writer, the checker, the warm-up records, the client, the web page and the README's table take
their signatures from `SIGNATURES`. To add one, add an entry here, a method of the same name to
`signatures.SignatureFunctions` and a test of what it computes. TensorFlow is not imported.
"""

import dataclasses
import io

import numpy as np
from PIL import Image

from igpt_tf.files import MAX_FILE_BYTES, MAX_FILE_PIXELS
from igpt_tf.sampling.params import MAX_IMAGES, PLAIN_SAMPLING

DEFAULT = "serving_default"  # answers as `default_signature` of the model


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Type and shape of an input or output.

    Attributes:
        dtype: NumPy's name of the type, or "string".
        axes: Sizes. Letters stand for B (batch), H, W (image), T = H W (tokens), L+1 (layers and
            the final norm), D (hidden), V (vocabulary) and C (classes); None is any size. Not a
            tuple but None if a graph does not declare the rank.
        description: What it is and which values are allowed, as a phrase.
        optional: Whether a request may leave the input out; see `default_value`.
    """

    dtype: str
    axes: tuple[str | int | None, ...] | None = ()
    description: str = ""
    optional: bool = False

    def __str__(self) -> str:
        if self.axes is None:
            return f"{self.dtype} of any rank"
        return f"{self.dtype}[{','.join('?' if axis is None else str(axis) for axis in self.axes)}]"

    def with_sizes(self, sizes: dict[str, int]) -> "TensorSpec":
        """Replaces the letters that `sizes` has."""
        axes = tuple(sizes.get(axis, axis) for axis in self.axes)
        return dataclasses.replace(self, axes=axes)

    def accepts(self, dtype: str, shape: tuple[int | None, ...] | None) -> bool:
        """Whether a tensor of this type and shape satisfies the spec. Letters accept any size."""
        if dtype != self.dtype or shape is None or len(shape) != len(self.axes):
            return False
        return all(
            isinstance(axis, str) or axis == size
            for axis, size in zip(self.axes, shape, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Signature:
    """A named function of a SavedModel.

    Attributes:
        name: Its name.
        description: What it computes, in one line.
        inputs: Input name -> `TensorSpec`.
        outputs: Output name -> `TensorSpec`.
        completion: The `completion` in the metadata of the models that have it; None for all.
        task: The name of the `task` in the metadata of the models that have it; None for all.
    """

    name: str
    description: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    completion: str | None = None
    task: str | None = None

    @property
    def is_random(self) -> bool:
        """Whether the answer depends on a seed."""
        return "seed" in self.inputs

    def is_available(self, metadata: dict) -> bool:
        """Whether the model with this metadata has the signature."""
        task = (metadata.get("task") or {}).get("name")
        return self.completion in (None, metadata["completion"]) and self.task in (None, task)

    def with_sizes(self, sizes: dict[str, int]) -> "Signature":
        """Replaces the letters that `sizes` has in all shapes."""
        return dataclasses.replace(
            self,
            inputs={name: spec.with_sizes(sizes) for name, spec in self.inputs.items()},
            outputs={name: spec.with_sizes(sizes) for name, spec in self.outputs.items()},
        )


_IMAGES = {"images": TensorSpec("uint8", ("B", "H", "W", 3))}
_IMAGE_BYTES = {
    "image_bytes": TensorSpec(
        "string",
        ("B",),
        "image files of any kind that training accepts, of at most "
        f"{MAX_FILE_BYTES // 2**20} MiB and {MAX_FILE_PIXELS // 2**20} Mi pixels each",
    )
}
_TOKENS = {"tokens": TensorSpec("int32", ("B", "T"))}
_SAMPLING = {
    "seed": TensorSpec("int32", (), "image i uses seed + i"),
    "temperature": TensorSpec("float32", (), "above 0; 1.0 if left out", optional=True),
    "top_k": TensorSpec("int32", (), "0, all colours, if left out", optional=True),
    "top_p": TensorSpec("float32", (), "in (0, 1]; 1.0 if left out", optional=True),
}
_FEATURES = {
    "features": TensorSpec(
        "float32",
        ("B", "L+1", "D"),
        "post-norm mean of layer l's input, index L the final norm",
    )
}
_CLASSES = {
    "probabilities": TensorSpec("float32", ("B", "C")),
    "labels": TensorSpec("int32", ("B",)),
}

_TABLE = (
    Signature(
        name="encode",
        description="Converts images to palette tokens.",
        inputs=_IMAGES,
        outputs=_TOKENS,
    ),
    Signature(
        name="decode",
        description="Converts palette tokens to images.",
        inputs=_TOKENS,
        outputs=_IMAGES,
    ),
    Signature(
        name="features",
        description="Computes the features of every layer.",
        inputs=_IMAGES,
        outputs=_FEATURES,
    ),
    Signature(
        name="features_bytes",
        description="Decodes, resizes and crops image files as training does, then as `features`.",
        inputs=_IMAGE_BYTES,
        outputs=_FEATURES,
    ),
    Signature(
        name="score",
        description="Computes the nats of every pixel.",
        inputs=_IMAGES,
        outputs={
            "nats_per_token": TensorSpec("float32", ("B",)),
            "surprise": TensorSpec("float32", ("B", "H", "W"), "nats at each pixel"),
        },
    ),
    Signature(
        name="sample",
        description="Generates images.",
        inputs={"num_images": TensorSpec("int32", (), f"1 to {MAX_IMAGES}"), **_SAMPLING},
        outputs={**_IMAGES, **_TOKENS},
        completion="raster order",
    ),
    Signature(
        name="complete",
        description="Keeps the first pixels of images and generates the rest.",
        inputs={
            **_IMAGES,
            "num_given": TensorSpec("int32", (), "raster pixels kept, 0 to T"),
            **_SAMPLING,
        },
        outputs={**_IMAGES, **_TOKENS},
    ),
    Signature(
        name="inpaint",
        description="Keeps the known pixels of images and generates the others.",
        inputs={
            **_IMAGES,
            "known": TensorSpec("bool", ("B", "H", "W")),
            "num_rounds": TensorSpec("int32", (), "1 to 1024"),
            **_SAMPLING,
        },
        outputs={**_IMAGES, **_TOKENS},
        completion="in-painting",
    ),
    Signature(
        name="classify",
        description="Computes class probabilities and the most probable class.",
        inputs=_IMAGES,
        outputs=_CLASSES,
        task="classification",
    ),
    Signature(
        name="classify_bytes",
        description="Decodes, resizes and crops image files as training does, then as `classify`.",
        inputs=_IMAGE_BYTES,
        outputs=_CLASSES,
        task="classification",
    ),
)
SIGNATURES = {signature.name: signature for signature in _TABLE}


def sizes_of(metadata: dict) -> dict[str, int]:
    """Sizes of a model by the letters of the shapes, from its SavedModel's metadata."""
    model, task = metadata["model"], metadata.get("task")
    height, width = model["image_size"]
    sizes = {
        "H": height,
        "W": width,
        "T": height * width,
        "L+1": model["num_layers"] + 1,
        "D": model["hidden_dim"],
        "V": model["vocabulary_size"],
    }
    return {**sizes, "C": task["num_classes"]} if task else sizes


def default_signature(metadata: dict) -> str:
    """Name of the signature that `serving_default` answers as."""
    return "classify" if SIGNATURES["classify"].is_available(metadata) else "features"


def available_signatures(metadata: dict) -> dict[str, Signature]:
    """Signatures of the model with this metadata, with its sizes, `serving_default` among them.

    Args:
        metadata: Content of a SavedModel's metadata.json.
    """
    sizes = sizes_of(metadata)
    found = {
        name: signature.with_sizes(sizes)
        for name, signature in SIGNATURES.items()
        if signature.is_available(metadata)
    }
    return {**found, DEFAULT: dataclasses.replace(found[default_signature(metadata)], name=DEFAULT)}


def differences(found: Signature, promised: Signature) -> list[str]:
    """How a signature that a graph or a server declares differs from the promised one, in words."""
    return [
        *_tensor_differences(f"{promised.name} takes", found.inputs, promised.inputs),
        *_tensor_differences(f"{promised.name} returns", found.outputs, promised.outputs),
    ]


def _tensor_differences(
    subject: str, found: dict[str, TensorSpec], promised: dict[str, TensorSpec]
) -> list[str]:
    problems = []
    for name in sorted(found.keys() | promised.keys()):
        if name not in promised:
            problems.append(f"{subject} {name}, which is not in the specification")
        elif name not in found:
            problems.append(f"{subject} no {name} ({promised[name]})")
        elif not promised[name].accepts(found[name].dtype, found[name].axes):
            problems.append(f"{subject} {name} as {found[name]}, not {promised[name]}")
        elif "B" in promised[name].axes and found[name].axes[0] is not None:
            problems.append(f"{subject} {name} with a fixed batch size, {found[name]}")
    return problems


def default_value(name: str) -> float | int:
    """Value of an optional input that a request leaves out: the paper's plain sampling."""
    return getattr(PLAIN_SAMPLING, name)


def example_request(
    signature: Signature, sizes: dict[str, int], batch_size: int = 1
) -> dict[str, np.ndarray]:
    """A small valid request: input name -> array; strings are arrays of objects.

    The first images of all batch sizes are the same. A completion generates the last pixel only.

    Args:
        signature: An entry of the table.
        sizes: From `sizes_of`.
        batch_size: B.
    """
    return {
        name: _example(name, spec, sizes, batch_size) for name, spec in signature.inputs.items()
    }


def _example(name: str, spec: TensorSpec, sizes: dict[str, int], batch_size: int) -> np.ndarray:
    if spec.dtype == "string":
        image = _random_images(1, 2 * sizes["H"], 3 * sizes["W"])[0]
        return byte_strings([_png(image)] * batch_size)
    if name == "images":
        return _random_images(batch_size, sizes["H"], sizes["W"])
    if spec.optional:
        return np.asarray(default_value(name), spec.dtype)
    if not spec.axes:
        numbers = {"num_images": batch_size, "num_given": sizes["T"] - 1, "num_rounds": 2}
        return np.asarray(numbers.get(name, 1), spec.dtype)
    shape = spec.with_sizes({**sizes, "B": batch_size}).axes
    limit = sizes["V"] if name == "tokens" else 2
    return np.random.default_rng(0).integers(0, limit, shape).astype(spec.dtype)


def _random_images(num_images: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_images, height, width, 3), "uint8")


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def byte_strings(contents: list[bytes]) -> np.ndarray:
    """An array of objects: NumPy's own arrays of bytes drop trailing zeros."""
    array = np.empty(len(contents), object)
    array[:] = contents
    return array


def markdown_table() -> str:
    """The table of the README's section "The SavedModel".

    A tensor's type and description stand where it is mentioned first.
    """
    lines = [
        "| signature | inputs | outputs |",
        "|---|---|---|",
        f"| `{DEFAULT}` | as `features` (pretrained) or `classify` (fine-tuned) | |",
    ]
    mentioned = set()
    for signature in SIGNATURES.values():
        cells = [f"`{signature.name}`{_condition(signature)}"]
        for specs in (signature.inputs, signature.outputs):
            cells.append(", ".join(_mention(*item, mentioned) for item in specs.items()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _condition(signature: Signature) -> str:
    kinds = {"raster order": "autoregressive", "in-painting": "masked"}
    if signature.completion:
        return f" ({kinds[signature.completion]} models)"
    return " (fine-tuned models)" if signature.task else ""


def _mention(name: str, spec: TensorSpec, mentioned: set[str]) -> str:
    if name in mentioned:
        return name
    mentioned.add(name)
    return f"{name} {spec}" + (f" ({spec.description})" if spec.description else "")
