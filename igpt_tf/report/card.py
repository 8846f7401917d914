"""The model card: what the model is for, what it saw, where it ends."""

import json

from igpt_tf.report.markup import Markup, facts, join, missing, tag
from igpt_tf.report.run import Run

_PAPER = "Generative Pretraining from Pixels (Chen et al., 2020)"
_UNITS = (
    "Losses are nats per palette token, never bits per RGB dimension: the palette is lossy. "
    "Durations are optimizer steps; batch sizes are global."
)


def card(run: Run) -> Markup:
    """From the exported model's metadata."""
    if run.metadata is None:
        return missing("No sound model was exported yet, so there is no card.")
    return join([facts(_about(run.metadata)), tag("ul", map(_point, _limits(run.metadata)))])


def _about(metadata: dict) -> list[tuple[str, object]]:
    size = "x".join(str(side) for side in metadata["model"]["image_size"])
    names = metadata.get("class_names")
    objective = (metadata.get("objective") or {}).get("name")
    return [
        ("model", f"Image GPT, {_shape(metadata['model'])}; {_PAPER}"),
        ("exported step", metadata.get("step")),
        ("objective", objective),
        ("images", f"{size} pixels in {metadata['model'].get('vocabulary_size')} colours"),
        ("trained on", _data(metadata.get("data"))),
        ("classes in the data", ", ".join(map(str, names)) if names else None),
        ("intended use", _use(metadata)),
        ("palette", metadata.get("palette")),
        ("units", _UNITS),
        ("licence", "to be filled in: licences of the weights and of the training images"),
        ("contact", "to be filled in"),
    ]


def _limits(metadata: dict) -> list[str]:
    size = "x".join(str(side) for side in metadata["model"]["image_size"])
    points = [
        f"It sees {size} pixels in a fixed palette; finer detail and other colours are lost to it.",
        "It knows only images like those it was trained on, with their gaps and their biases; "
        "what it paints may resemble single training images.",
        "Numbers here hold for the data named beside them. It is not made to decide about people.",
    ]
    if metadata.get("score") == "pseudo-likelihood":
        points.append("Its scores are pseudo-likelihoods: to be compared with each other only.")
    if metadata.get("task"):
        points.append("It gives every image one of its classes, also an image of none of them.")
    return points


def _use(metadata: dict) -> str:
    if metadata.get("task"):
        return "classify images of the kind it was fine-tuned on; research and teaching"
    causal = metadata["model"].get("causal", True)
    painted = "samples, completions, scores" if causal else "in-painting, pseudo-likelihood scores"
    return f"features for classifiers, {painted}; research and teaching"


def _shape(model: dict) -> str:
    return (
        f"{model.get('num_layers')} layers of width {model.get('hidden_dim')}, "
        f"{model.get('num_heads')} heads"
    )


def _data(data: dict | None) -> str:
    if not data:
        return "not recorded"
    arguments = json.dumps(data.get("arguments", {}), sort_keys=True)
    return f"{data.get('name')} {arguments}"


def _point(text: str) -> Markup:
    return tag("li", text)
