"""Export of a SavedModel as a Hugging Face ImageGPT folder with a model card. Needs no torch."""

import os
import re
import shlex

import numpy as np
from safetensors.numpy import save_file

from igpt_tf import files
from igpt_tf.convert import huggingface_layout as layout
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.load import load_model

MODEL_CARD_FILE = "README.md"

_MODEL_CARD = """\
---
library_name: transformers
license: {license}
pipeline_tag: unconditional-image-generation
tags:
- image-gpt
- imagegpt
---

# {name}

An Image GPT ("Generative Pretraining from Pixels", Chen et al. 2020): an autoregressive transformer
over the pixels of {height}x{width} images, with {num_layers} layers of width {hidden_dim},
{num_heads} heads and {num_parameters:,} parameters. Pretrained with igpt_tf {version} in TensorFlow
and exported to the classes of `transformers`.

| | |
|---|---|
| training data | {data} |
| optimizer steps | {step} |
| held-out loss | {loss} |
| palette | {num_colours} colours (fingerprint `{fingerprint}`), in `preprocessor_config.json` |

The loss is in nats per palette token, not in bits per dimension: a palette is lossy in general.

## Use

```python
import torch
from transformers import ImageGPTForCausalImageModeling, ImageGPTImageProcessor

model = ImageGPTForCausalImageModeling.from_pretrained("USER/{name}")
processor = ImageGPTImageProcessor.from_pretrained("USER/{name}")
sos = torch.full((4, 1), model.config.vocab_size - 1)
tokens = model.generate(sos, do_sample=True, max_length=model.config.n_positions + 1)[:, 1:]
colours = torch.tensor(processor.clusters)[tokens]  # [4, {sequence_length}, 3] in [-1, 1]
images = (127.5 * (colours + 1)).round().byte().reshape(4, {height}, {width}, 3)
```

## Licence

{license_text}
"""


def export_huggingface(*, saved_model: str, workdir: str, license: str = "unknown") -> str:
    """Writes a folder that `from_pretrained` of ImageGPT's classes and image processor opens.

    Args:
        saved_model: Path of an autoregressive model.
        workdir: The folder; must not hold a model yet.
        license: Identifier of the licence of the weights for the model card, e.g. "mit" or
            "cc-by-4.0". See https://huggingface.co/docs/hub/repositories-licenses.

    Returns:
        A description for the terminal, with the command that uploads the folder.

    Raises:
        InputError: The model is a masked one, which Hugging Face's ImageGPT cannot express, or the
            folder holds a model or cannot be created.
    """
    files.make_workdir(workdir)
    model, palette, metadata = load_model(saved_model)
    write_huggingface(model, palette, workdir)
    # Hugging Face's names of repositories have these characters only.
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", os.path.basename(os.path.abspath(workdir))).strip("-.")
    name = name or "igpt"
    card = model_card(model, palette, metadata, name, license)
    files.write_text(os.path.join(workdir, MODEL_CARD_FILE), card)
    return (
        f"ImageGPTForCausalImageModeling, {model.count_params():,} parameters: {workdir}\n"
        f"Upload it with: {shlex.join(['hf', 'upload', f'USER/{name}', workdir])}"
    )


def write_huggingface(model: ImageGPT, palette: Palette, folder: str) -> None:
    """Writes weights, configuration and image processor; see `export_huggingface`."""
    if not model.causal:
        raise InputError(
            "Hugging Face's ImageGPT is autoregressive and cannot express a masked (BERT) model. "
            "Received: causal=False"
        )
    path = os.path.join(folder, layout.WEIGHTS_FILE)
    if os.path.exists(path):
        raise InputError(f"the folder holds a model; choose another one. Received: {path}")
    files.make_workdir(folder)
    with files.atomic_write(path) as file:
        # transformers reads in the metadata which framework's shapes these are.
        save_file(_tensors(model), file.name, metadata={"format": "pt"})
    files.write_json(os.path.join(folder, layout.CONFIG_FILE), _config(model))
    files.write_json(os.path.join(folder, layout.PROCESSOR_FILE), _processor(model, palette))


def model_card(
    model: ImageGPT, palette: Palette, metadata: dict, name: str, license: str = "unknown"
) -> str:
    """The model card: Markdown with the YAML header of the Hugging Face Hub.

    Args:
        model: The network.
        palette: Its palette.
        metadata: Metadata of the SavedModel; missing fields are described as unknown.
        name: Name of the repository.
        license: See `export_huggingface`.
    """
    nats = metadata.get("nats_per_token")
    license_text = f"The weights are released under: {license}."
    if license == "unknown":
        license_text = "The licence of these weights has not been stated."
    height, width = model.image_size
    return _MODEL_CARD.format(
        name=name,
        license=license,
        license_text=license_text,
        version=metadata.get("versions", {}).get("igpt_tf", ""),
        height=height,
        width=width,
        sequence_length=model.sequence_length,
        num_layers=model.num_layers,
        hidden_dim=model.hidden_dim,
        num_heads=model.num_heads,
        num_parameters=model.count_params(),
        data=_describe_data(metadata.get("data")),
        step=f"{metadata['step']:,}" if metadata.get("step") else "unknown",
        loss="not measured" if nats is None else f"{nats:.4f} nats per token",
        num_colours=len(palette),
        fingerprint=palette.fingerprint,
    )


def _describe_data(data: dict | None) -> str:
    """Name and numbers of the data set; texts are left out, as they are paths of this machine."""
    if data is None:
        return "unknown"
    arguments = (data.get("arguments") or {}).items()
    numbers = [
        f"{name} {value}" for name, value in arguments if not isinstance(value, str | type(None))
    ]
    return f"{data['name']}" + (f" ({', '.join(numbers)})" if numbers else "")


def _tensors(model: ImageGPT) -> dict[str, np.ndarray]:
    """Every tensor of the layout, float32."""
    tensors = {name: np.asarray(variable) for name, variable in layout.variables(model)}
    rows = [np.asarray(model.token_embedding), np.asarray(model.sos)[None]]
    tensors[layout.TOKEN_EMBEDDING] = np.concatenate(rows)
    shapes = layout.shapes(model.architecture)
    zeros = {n: np.zeros(s, "float32") for n, s in shapes.items() if layout.is_bias(n)}
    return tensors | zeros


def _config(model: ImageGPT) -> dict:
    """`config.json`. Dropout is set to 0, as the library's default is 0.1."""
    dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    return {
        "architectures": ["ImageGPTForCausalImageModeling"],
        "initializer_range": 0.02,
        "model_type": layout.MODEL_TYPE,
        "n_embd": model.hidden_dim,
        "n_head": model.num_heads,
        "n_inner": None,
        "n_layer": model.num_layers,
        "n_positions": model.sequence_length,
        # With False, releases 4.42 to 5.20 divide by the integer part of sqrt(head_dim).
        "reorder_and_upcast_attn": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": model.vocabulary_size + 1,
        **dropouts,
        **layout.FUNCTION,
    }


def _processor(model: ImageGPT, palette: Palette) -> dict:
    """`preprocessor_config.json`: resize, scale to [-1, 1], nearest colour."""
    height, width = model.image_size
    return {
        "clusters": palette.centroids.tolist(),
        "do_color_quantize": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "ImageGPTImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": height, "width": width},
    }
