"""An imported network -> the SavedModel of this repository's contract."""

import os

from igpt_tf.convert import inventory
from igpt_tf.errors import InputError
from igpt_tf.files import make_workdir, write_json
from igpt_tf.model import ImageGPT
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.write import write_pretrained

# What the published BERT models were trained with (paper, section 4.7).
_MASK_PROBABILITY = 0.15


def destination(workdir: str, step: int) -> str:
    """`WORKDIR/export/STEP`, of a workdir that exists by then.

    Raises:
        InputError: The workdir cannot be created, or something lies there.
    """
    make_workdir(workdir)
    path = os.path.join(workdir, "export", str(step))
    if os.path.exists(path):
        raise InputError(
            f"an export lies there already; remove it or name another folder. Received: {path}"
        )
    return path


def publish(
    model: ImageGPT, palette: Palette, workdir: str, *, step: int, source: str, ignored=()
) -> dict:
    """Writes the SavedModel, the palette and `import.json`.

    Args:
        model: The network.
        palette: Its palette.
        workdir: Holds `export/STEP`, `palette.npy` and `import.json` afterwards.
        step: Training step, 0 if unknown.
        source: Where the weights came from.
        ignored: Names of the source's variables that were left behind.

    Returns:
        The content of `import.json`.

    Raises:
        InputError: The palette is of another size, or the export exists.
    """
    inventory.check_palette(len(palette), model.vocabulary_size)
    path = destination(workdir, step)
    write_pretrained(
        model,
        palette,
        path,
        objective=_objective(model),
        data=None,
        class_names=None,
        step=step,
        nats_per_token=None,
    )
    palette.save(os.path.join(workdir, "palette.npy"))
    report = {
        "saved_model": path,
        "source": source,
        "model": model.architecture,
        "num_parameters": model.count_params(),
        "palette": palette.fingerprint,
        "ignored": list(ignored),
    }
    write_json(os.path.join(workdir, "import.json"), report)
    return report


def _objective(model: ImageGPT) -> dict:
    """What a network of this kind was trained for."""
    if model.causal:
        return {"name": "autoregressive"}
    return {"name": "masked", "probability": _MASK_PROBABILITY}


def summary(report: dict) -> str:
    """One line for the person at the terminal."""
    model = report["model"]
    height, width = model["image_size"]
    kind = "autoregressive" if model["causal"] else "BERT"
    return (
        f"{kind} model, {model['num_layers']} layers of {model['hidden_dim']}, "
        f"{model['num_heads']} heads, {height} x {width} pixels, "
        f"{report['num_parameters']:,} parameters -> {report['saved_model']}"
    )
