"""What every SavedModel of ours promises: signatures, their inputs and outputs, by kind of model.

The README's section "The SavedModel" in a form that a program can hold a model to.
"""

import dataclasses

from igpt_tf.savedmodel.session import Signature, TensorInfo


@dataclasses.dataclass(frozen=True)
class Spec:
    """A type and a shape of numbers and letters: B any batch, the others the model's."""

    dtype: str
    shape: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    def of(self, sizes: dict[str, int]) -> "Spec":
        """With the letters that `sizes` knows replaced."""
        return Spec(self.dtype, tuple(sizes.get(size, size) for size in self.shape))

    def admits(self, dtype: str, shape) -> bool:
        """Whether it describes values of that type and shape, whose None is any size."""
        return (
            dtype == self.dtype
            and shape is not None
            and len(shape) == len(self.shape)
            and all(isinstance(mine, str) or mine == theirs
                    for mine, theirs in zip(self.shape, shape, strict=True))
        )  # fmt: skip


_IMAGES = {"images": Spec("uint8", ("B", "H", "W", 3))}
_FILES = {"image_bytes": Spec("string", ("B",))}
_TOKENS = {"tokens": Spec("int32", ("B", "T"))}
_CHOICE = {
    "seed": Spec("int32"),
    "temperature": Spec("float32"),
    "top_k": Spec("int32"),
    "top_p": Spec("float32"),
}
_FEATURES = {"features": Spec("float32", ("B", "L+1", "D"))}
_CLASSES = {"probabilities": Spec("float32", ("B", "C")), "labels": Spec("int32", ("B",))}

_PAINTED = {**_IMAGES, **_TOKENS}
_KNOWN = {"known": Spec("bool", ("B", "H", "W")), "num_rounds": Spec("int32")}

# Signature: inputs, outputs.
_OF_ALL = {
    "encode": (_IMAGES, _TOKENS),
    "decode": (_TOKENS, _IMAGES),
    "features": (_IMAGES, _FEATURES),
    "features_bytes": (_FILES, _FEATURES),
    "score": (
        _IMAGES,
        {
            "nats_per_token": Spec("float32", ("B",)),
            "surprise": Spec("float32", ("B", "H", "W")),
        },
    ),
    "complete": ({**_IMAGES, "num_given": Spec("int32"), **_CHOICE}, _PAINTED),
}
_OF_CAUSAL = {"sample": ({"num_images": Spec("int32"), **_CHOICE}, _PAINTED)}
_OF_MASKED = {"inpaint": ({**_IMAGES, **_KNOWN, **_CHOICE}, _PAINTED)}
_OF_FINETUNED = {"classify": (_IMAGES, _CLASSES), "classify_bytes": (_FILES, _CLASSES)}


def sizes_of(metadata: dict) -> dict[str, int]:
    """The letters of shapes, from a SavedModel's metadata."""
    model = metadata["model"]
    height, width = model["image_size"]
    return {
        "H": height,
        "W": width,
        "T": height * width,
        "L+1": model["num_layers"] + 1,
        "D": model["hidden_dim"],
        "V": model["vocabulary_size"],
        **({"C": metadata["task"]["num_classes"]} if is_finetuned(metadata) else {}),
    }


def kind_of(metadata: dict) -> str:
    """ "autoregressive" or "masked", and whether fine-tuned."""
    kind = "autoregressive" if metadata["model"]["causal"] else "masked"
    return f"{kind}, fine-tuned" if is_finetuned(metadata) else kind


def is_finetuned(metadata: dict) -> bool:
    """Whether the model classifies. (The oldest exports lack the key.)"""
    return metadata.get("task") is not None


def promised(metadata: dict) -> dict[str, tuple[dict, dict]]:
    """Signature -> (inputs, outputs), each name -> `Spec`, of the model with this metadata."""
    signatures = {**_OF_ALL, **(_OF_CAUSAL if metadata["model"]["causal"] else _OF_MASKED)}
    if is_finetuned(metadata):
        signatures |= _OF_FINETUNED
    signatures["serving_default"] = signatures["classify" if is_finetuned(metadata) else "features"]
    sizes = sizes_of(metadata)
    return {
        name: tuple({key: spec.of(sizes) for key, spec in specs.items()} for specs in both)
        for name, both in sorted(signatures.items())
    }


def differences(name: str, signature: Signature, inputs: dict, outputs: dict) -> list[str]:
    """How a signature differs from the promised inputs and outputs, in words."""
    return [
        *_differences(f"{name} takes", signature.inputs, inputs),
        *_differences(f"{name} returns", signature.outputs, outputs),
    ]


def _differences(what: str, infos: dict[str, TensorInfo], specs: dict[str, Spec]) -> list[str]:
    found = []
    for key in sorted(infos.keys() | specs.keys()):
        if key not in specs:
            found.append(f"{what} {key}, which the contract does not know")
        elif key not in infos:
            found.append(f"{what} no {key} ({specs[key]})")
        elif not specs[key].admits(infos[key].dtype, infos[key].shape):
            found.append(f"{what} {key} as {_shown(infos[key])}, not {specs[key]}")
        elif "B" in specs[key].shape and infos[key].shape[specs[key].shape.index("B")] is not None:
            found.append(f"{what} {key} with a fixed batch size, {_shown(infos[key])}")
    return found


def _shown(info: TensorInfo) -> str:
    if info.shape is None:
        return f"{info.dtype} of any shape"
    return f"{info.dtype}[{','.join('B' if size is None else str(size) for size in info.shape)}]"
