"""Parts shared by all imports: checks of names, shapes and values; the SavedModel written."""

import math
import os
from collections.abc import Mapping, Sequence

from igpt_tf.errors import InputError
from igpt_tf.files import make_workdir, write_json
from igpt_tf.model import ImageGPT
from igpt_tf.objectives import Autoregressive, Masked
from igpt_tf.palette import Palette
from igpt_tf.savedmodel.write import write_pretrained

Shapes = Mapping[str, tuple[int, ...]]


def check_shapes(expected: Shapes, found: Shapes, path: str) -> None:
    """Checks that a file holds exactly the variables of the network.

    Args:
        expected: Name -> shape of every variable of the network.
        found: Name -> shape of every variable of the file, without those known to be irrelevant.
        path: The file, for the error.

    Raises:
        InputError: Names every variable that is missing, unexpected or of the wrong shape.
    """
    other_shapes = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    lists = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of the wrong shape": other_shapes,
    }
    problems = [f"{kind}: {', '.join(names)}" for kind, names in lists.items() if names]
    if problems:
        raise InputError(
            f"the weights are not those of an Image GPT; {'; '.join(problems)}. "
            f"Received: path={path}"
        )


def square_image_size(sequence_length: int, path: str) -> tuple[int, int]:
    """(H, W) of the square image of that many pixels. Raises: InputError: There is none."""
    side = math.isqrt(sequence_length)
    if side * side != sequence_length:
        raise InputError(
            "the number of positions is not that of a square image, and the file has no other "
            f"image size. Received: sequence_length={sequence_length}, path={path}"
        )
    return side, side


def check_palette_size(palette: Palette, vocabulary_size: int) -> None:
    """Raises: InputError: The palette and the vocabulary differ in size."""
    if len(palette) != vocabulary_size:
        raise InputError(
            "the palette is not the one this model was trained with: it has "
            f"{len(palette)} colours and the model {vocabulary_size} tokens; pass the model's own "
            f"with --palette. Received: num_colours={len(palette)}, "
            f"vocabulary_size={vocabulary_size}"
        )


def export_path(workdir: str, step: int) -> str:
    """Creates the workdir and returns `WORKDIR/export/STEP`.

    Raises:
        InputError: The workdir cannot be created or written, or the export exists.
    """
    make_workdir(workdir)
    path = os.path.join(workdir, "export", str(step))
    if os.path.exists(path):
        raise InputError(
            f"an export exists there; remove it or choose another workdir. Received: {path}"
        )
    return path


def write_imported(
    model: ImageGPT,
    palette: Palette,
    workdir: str,
    *,
    step: int,
    source: str,
    ignored: Sequence[str] = (),
) -> dict:
    """Writes the SavedModel `export/STEP`, `palette.npy` and `import.json` into a workdir.

    Args:
        model: The network.
        palette: Its palette.
        workdir: The folder.
        step: Training step of the weights, 0 if unknown.
        source: Path that the weights were imported from.
        ignored: Names of the variables of the source that are not part of the network.

    Returns:
        The content of `import.json`.

    Raises:
        InputError: The palette has another size, or the export exists.
    """
    check_palette_size(palette, model.vocabulary_size)
    path = export_path(workdir, step)
    # Masked's default probability is that of the published BERT models (paper, section 4.7).
    objective = Autoregressive() if model.causal else Masked()
    write_pretrained(
        model,
        palette,
        path,
        objective=objective.get_config(),
        data=None,
        class_names=None,
        step=step,
        nats_per_token=None,
    )
    palette.save(os.path.join(workdir, "palette.npy"))
    report = {
        "saved_model": path,
        "source": source,
        "objective": objective.name,
        "model": model.architecture,
        "num_parameters": model.count_params(),
        "palette": palette.fingerprint,
        "ignored": list(ignored),
    }
    write_json(os.path.join(workdir, "import.json"), report)
    return report


def format_report(report: dict) -> str:
    """The content of `import.json` as lines for the terminal."""
    model = report["model"]
    height, width = model["image_size"]
    lines = [
        f"{report['objective']}: {model['num_layers']} layers of width {model['hidden_dim']}, "
        f"{model['num_heads']} heads, {height}x{width} pixels, "
        f"{report['num_parameters']:,} parameters",
        f"SavedModel: {report['saved_model']}",
    ]
    if report["ignored"]:
        lines.append(f"not imported, as not part of the network: {', '.join(report['ignored'])}")
    return "\n".join(lines)
