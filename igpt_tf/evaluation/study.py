"""A study: a grid of pretraining runs, the linear probe of each, one table and its figures.

A cell of the grid is an ordinary run in a workdir of its own, started as a separate process, so
that it resumes after an interruption and finished cells are kept.

Source: paper, sections 4.1 to 4.4 and figures 2 to 4; the training budgets follow Hoffmann et al.
2022, "Training Compute-Optimal Large Language Models".
"""

import collections
import csv
import dataclasses
import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import gin
import numpy as np

from igpt_tf import config, files, formatting
from igpt_tf.errors import InputError
from igpt_tf.model import ImageGPT, abstract_model
from igpt_tf.savedmodel.metadata import find, read_metadata
from igpt_tf.training.plan import measure_flops
from igpt_tf.training.workdir import first_difference

_PROBE_FOLDER = "linear_probe"
_UTILISATION = 0.3  # of the peak FLOP/s; small models reach less than large ones
_MIN_CELLS_TO_FIT = 6  # the fit has five coefficients


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        objective: Name of the objective.
        size: Name of the model's size.
        tokens_per_parameter: Budget: number of training tokens per weight.
        seed: Random seed of the run.
        num_layers, hidden_dim, num_heads, vocabulary_size: Sizes of the model.
        parameters: Number of weights.
        sequence_length: Tokens per image.
        num_steps: Length of the run in optimizer steps.
        batch_size: Images per step.
        learning_rate: Peak learning rate.
    """

    objective: str
    size: str
    tokens_per_parameter: int
    seed: int
    num_layers: int
    hidden_dim: int
    num_heads: int
    vocabulary_size: int
    parameters: int
    sequence_length: int
    num_steps: int
    batch_size: int
    learning_rate: float

    @property
    def name(self) -> str:
        """Folder of the cell, such as "autoregressive_s_50_seed0"."""
        return f"{self.objective}_{self.size}_{self.tokens_per_parameter}_seed{self.seed}"

    @property
    def bindings(self) -> dict:
        """Gin bindings that distinguish the cell from others, apart from the objective."""
        return {
            "build_model.num_layers": self.num_layers,
            "build_model.hidden_dim": self.hidden_dim,
            "build_model.num_heads": self.num_heads,
            "build_model.vocabulary_size": self.vocabulary_size,
            "train.num_steps": self.num_steps,
            "train.batch_size": self.batch_size,
            "train.seed": self.seed,
            "build_optimizer.learning_rate": self.learning_rate,
        }

    @property
    def tokens(self) -> int:
        """Number of training tokens."""
        return self.num_steps * self.batch_size * self.sequence_length

    @property
    def flops(self) -> float:
        """Arithmetic of training: 6 per weight and token, and attention's products.

        Embedding look-ups need no arithmetic, the output embedding does.
        """
        look_ups = self.sequence_length * self.hidden_dim  # position embeddings
        attended = self.sequence_length / (2 if self.objective == "autoregressive" else 1)
        attention = 12 * self.num_layers * self.hidden_dim * attended
        return self.tokens * (6 * (self.parameters - look_ups) + attention)


@gin.configurable
def study(
    *,
    workdir: str,
    gin_files: Sequence[str],
    models: Mapping[str, tuple[int, int, int]],
    tokens_per_parameter: Sequence[int],
    image_size: tuple[int, int],
    vocabulary_size: int,
    batch_size: int,
    learning_rate_times_width: float,
    objectives: Sequence[str] = ("autoregressive", "masked"),
    seeds: Mapping[str, Sequence[int]] | Sequence[int] = (0,),
    bindings: Sequence[str] = (),
    probe: bool = True,
    probe_bindings: Sequence[str] = (),
    dry_run: bool = False,
    jobs: int = 1,
    shard: str = "0/1",
) -> str:
    """Runs the cells that are not finished, then writes the table and the figures.

    Args:
        workdir: Folder of the study: `cells/NAME/`, `study.json`, `study.csv` and figures.
        gin_files: Gin files that all cells share: base, data set, optimization.
        models: Size name -> (num_layers, hidden_dim, num_heads).
        tokens_per_parameter: Training budgets.
        image_size: (H, W) of the images.
        vocabulary_size: Number of colours of the palette.
        batch_size: Images per step.
        learning_rate_times_width: The peak learning rate of a model is this over `hidden_dim`.
        objectives: Names of files in gin/objectives.
        seeds: Random seeds of every size, or size name -> seeds (others have seed 0).
        bindings: Gin bindings that all cells share.
        probe: Whether to run `tools.linear_probe` on each cell. A data set without labels has no
            probes; a message reports this.
        probe_bindings: Gin bindings of the probes.
        dry_run: Print the cells, their arithmetic and expected time; run and write nothing.
        jobs: Cells that run at the same time.
        shard: "I/N" runs every N-th cell from the I-th, for a cluster's job array.

    Returns:
        The table as text.

    Raises:
        InputError: The grid is empty, a budget is shorter than a step, a cell's workdir belongs to
            another configuration, or a cell fails.
    """
    cells = grid_cells(
        models=models,
        tokens_per_parameter=tokens_per_parameter,
        objectives=objectives,
        seeds=seeds,
        image_size=image_size,
        vocabulary_size=vocabulary_size,
        batch_size=batch_size,
        learning_rate_times_width=learning_rate_times_width,
    )
    mine = cells[_shard_slice(shard)]
    if dry_run:
        return _format_plan(mine, workdir)
    files.make_workdir(workdir)

    def run(cell: Cell) -> None:
        folder = os.path.join(workdir, "cells", cell.name)
        _pretrain(programs, cell, folder, gin_files, bindings)
        if probe:
            _probe(programs, cell, folder, probe_bindings)

    with ThreadPoolExecutor(jobs) as threads, _Programs() as programs:
        list(threads.map(run, mine))
    rows = [row for cell in cells if (row := _read_cell(cell, workdir)) is not None]
    report = {"cells": rows, "fits": {name: fit_loss(rows, name) for name in objectives}}
    files.write_json(os.path.join(workdir, "study.json"), report)
    files.write_text(os.path.join(workdir, "study.csv"), _as_csv(rows))
    from igpt_tf.evaluation import study_figures  # matplotlib is not needed before

    study_figures.write_figures(workdir, report)
    unfinished = len(cells) - len(rows)
    note = f"\n{unfinished} of {len(cells)} cells are not finished." if unfinished else ""
    return format_table(rows) + note


def grid_cells(
    *,
    models: Mapping[str, tuple[int, int, int]],
    tokens_per_parameter: Sequence[int],
    objectives: Sequence[str],
    seeds: Mapping[str, Sequence[int]] | Sequence[int],
    image_size: tuple[int, int],
    vocabulary_size: int,
    batch_size: int,
    learning_rate_times_width: float,
) -> list[Cell]:
    """The cells of a grid, cheapest budgets first. Arguments as in `study`.

    Raises:
        InputError: The grid is empty or has a cell twice, a budget is shorter than a step, an
            objective has no gin file, seeds are given for a size that does not exist, or a size's
            name is no name of a folder.
    """
    for size in models:
        if os.sep in size:
            raise InputError(
                "the name of a size is part of a folder's name; leave out the separators. "
                f"Received: study.models with {size!r}"
            )
    for objective in objectives:
        config.find_gin_file(_objective_file(objective))
    cells = []
    length = image_size[0] * image_size[1]
    for ratio in sorted(tokens_per_parameter):
        for size, (num_layers, hidden_dim, num_heads) in models.items():
            parameters = _count(image_size, vocabulary_size, num_layers, hidden_dim, num_heads)
            num_steps = round(parameters * ratio / (length * batch_size))
            if num_steps < 1:
                raise InputError(
                    "a budget must be at least one step; raise tokens_per_parameter or lower "
                    f"batch_size. Received: tokens_per_parameter={ratio}, size={size!r} of "
                    f"{parameters:,} weights, batch_size={batch_size}"
                )
            own_seeds = seeds.get(size, (0,)) if isinstance(seeds, Mapping) else seeds
            cells += [
                Cell(
                    objective=objective,
                    size=size,
                    tokens_per_parameter=ratio,
                    seed=seed,
                    num_layers=num_layers,
                    hidden_dim=hidden_dim,
                    num_heads=num_heads,
                    vocabulary_size=vocabulary_size,
                    parameters=parameters,
                    sequence_length=length,
                    num_steps=num_steps,
                    batch_size=batch_size,
                    learning_rate=round(learning_rate_times_width / hidden_dim, 6),
                )
                for objective in objectives
                for seed in own_seeds
            ]
    if not cells:
        raise InputError(
            "the grid is empty; give study.models, study.tokens_per_parameter, study.objectives "
            f"and study.seeds at least one value each. Received: models={dict(models)}, "
            f"tokens_per_parameter={list(tokens_per_parameter)}, objectives={list(objectives)}"
        )
    if isinstance(seeds, Mapping) and (unknown := [size for size in seeds if size not in models]):
        raise InputError(
            f"study.seeds names a size that study.models lacks; there are {', '.join(models)}. "
            f"Received: {unknown[0]!r}"
        )
    name, count = collections.Counter(cell.name for cell in cells).most_common(1)[0]
    if count > 1:
        raise InputError(
            "a cell occurs twice in the grid; name each budget, objective and seed once. "
            f"Received: {name}"
        )
    return cells


def _count(image_size, vocabulary_size, num_layers, hidden_dim, num_heads) -> int:
    def build() -> ImageGPT:
        return ImageGPT(
            image_size=tuple(image_size),
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
        )

    return abstract_model(build).count_params()


def _shard_slice(shard: str) -> slice:
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise InputError(f"--shard must be I/N with I below N, such as 0/4. Received: {shard=}")
    return slice(int(index), None, int(count))


class _Programs:
    """The programs that run, ended with this one: SIGTERM is passed on to them.

    A terminal sends Ctrl-C to them itself.
    """

    def __init__(self):
        self._running = set()
        self._is_stopping = False

    def __enter__(self) -> "_Programs":
        self._handler = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGTERM, self._handler)

    def _stop(self, number, _frame):
        self._is_stopping = True
        for program in tuple(self._running):
            program.terminate()
        sys.exit(128 + number)

    def call(self, name: str, module: str, *arguments: str) -> None:
        """Runs a program; its error line becomes an InputError that names the cell."""
        print(f"{name}: python -m {module}", flush=True)
        command = [sys.executable, "-m", module, *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
            self._running.add(program)
            if self._is_stopping:  # it was started while the others were ended
                program.terminate()
            _, messages = program.communicate()
            self._running.discard(program)
        code = program.returncode
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise InputError(
                f"the cell {name} was ended by a signal and has saved its state; start the same "
                f"command again to continue. Received: exit code {code}"
            )
        if code:
            lines = [line for line in messages.splitlines() if line.startswith("error: ")]
            reason = lines[-1].removeprefix("error: ") if lines else messages.strip()[-300:]
            raise InputError(f"the cell {name} ended with exit code {code}: {reason}")


def _pretrain(
    programs: _Programs,
    cell: Cell,
    folder: str,
    gin_files: Sequence[str],
    bindings: Sequence[str],
) -> None:
    """Starts or resumes the run of a cell; a finished one ends at once."""
    if _is_finished(folder, cell, bindings):
        return
    own = [*bindings, *(f"{name}={value}" for name, value in cell.bindings.items())]
    programs.call(
        cell.name,
        "igpt_tf.main",
        *(f"--gin_file={path}" for path in (*gin_files, _objective_file(cell.objective))),
        *(f"--gin_param={binding}" for binding in own),
        f"--workdir={folder}",
    )


def _objective_file(objective: str) -> str:
    return f"gin/objectives/{objective}.gin"


def _is_finished(folder: str, cell: Cell, bindings: Sequence[str]) -> bool:
    """Whether the run is complete. Raises: InputError: It is a run of another configuration."""
    if not os.path.exists(os.path.join(folder, "result.json")):
        return False
    with open(os.path.join(folder, "operative_config.gin"), encoding="utf-8") as file:
        found = config.parse_bindings(file.read())
    given = config.parse_bindings("\n".join(bindings))
    given |= {name: repr(value) for name, value in cell.bindings.items()}
    now = found | {name: value for name, value in given.items() if name in found}
    if difference := first_difference(found, now, folder_before=os.getcwd()):
        raise InputError(
            "a cell's workdir belongs to another configuration; choose another study folder "
            f"or remove it. Received: {difference}, workdir={folder}"
        )
    return True


def _probe(programs: _Programs, cell: Cell, folder: str, bindings: Sequence[str]) -> None:
    """Runs the linear probe of a cell unless its result exists or the data have no labels."""
    workdir = os.path.join(folder, _PROBE_FOLDER)
    if os.path.exists(os.path.join(workdir, "linear_probe.json")):
        return
    export = os.path.join(folder, "export")
    metadata = read_metadata(find(export))
    if metadata.get("class_names") is None:
        print(f"{cell.name}: no linear probe, the data set has no labels", flush=True)
        return
    programs.call(
        f"{cell.name}, linear probe",
        "tools.linear_probe",
        f"--saved_model={export}",
        f"--workdir={workdir}",
        *(f"--gin_param={binding}" for binding in bindings),
    )


def _read_cell(cell: Cell, workdir: str) -> dict | None:
    """The row of a finished cell: its settings, losses and probe accuracies."""
    folder = os.path.join(workdir, "cells", cell.name)
    path = os.path.join(folder, "result.json")
    if not os.path.exists(path):
        return None
    fix = "remove it and start the study again"
    result = files.read_json(path, description="the result of a cell", fix=fix)
    # A masked model has no `sos`, which the cells of a budget count alike.
    if cell.parameters - result["parameters"] not in (0, cell.hidden_dim):
        raise InputError(
            "the images of the runs have another size than study.image_size; give theirs. "
            f"Received: {cell.parameters:,} weights by the study, {result['parameters']:,} in "
            f"{folder}"
        )
    row = {
        "name": cell.name,
        **dataclasses.asdict(cell),
        "tokens": cell.tokens,
        "flops": cell.flops,
        "step": result["step"],
        **{f"{split}_nats_per_token": value for split, value in result["nats_per_token"].items()},
    }
    path = os.path.join(folder, _PROBE_FOLDER, "linear_probe.json")
    if os.path.exists(path):
        probe = files.read_json(path, description="the probe of a cell", fix=fix)
        split = probe["measured_on"]
        best = probe["best_layer"]
        row |= {
            "probe_split": split,
            "probe_accuracy": best[f"{split}_accuracy"],
            "probe_layer": best["layer"],
            "probe_by_layer": [layer[f"{split}_accuracy"] for layer in probe["layers"]],
            "raw_pixels_accuracy": probe["baselines"]["raw_pixels"][f"{split}_accuracy"],
        }
    return row


def fit_loss(rows: Sequence[dict], objective: str) -> dict | None:
    """Fits loss = E + A / N^alpha + B / D^beta to the cells of one objective.

    Args:
        rows: Rows of the table; N is `parameters`, D `tokens`, the loss the held-out one.
        objective: Whose cells are used.

    Returns:
        {"E", "A", "alpha", "B", "beta", "rms"}, or None with fewer than 6 different cells.

    Source: Hoffmann et al. 2022, section 3.3.
    """
    from scipy.optimize import least_squares

    own = [row for row in rows if row["objective"] == objective]
    points = np.array([[r["parameters"], r["tokens"], r["valid_nats_per_token"]] for r in own])
    if len(points) == 0 or len(np.unique(points[:, :2], axis=0)) < _MIN_CELLS_TO_FIT:
        return None
    weights, tokens, losses = points.T

    def predict(parameters):
        log_e, log_a, alpha, log_b, beta = parameters
        return np.exp(log_e) + np.exp(log_a) / weights**alpha + np.exp(log_b) / tokens**beta

    start = [np.log(losses.min() * 0.9), 3.0, 0.4, 3.0, 0.4]
    bounds = ([-5, -5, 0.01, -5, 0.01], [5, 25, 2, 25, 2])
    found = least_squares(lambda p: predict(p) - losses, start, bounds=bounds)
    log_e, log_a, alpha, log_b, beta = found.x
    return {
        "E": float(np.exp(log_e)),
        "A": float(np.exp(log_a)),
        "alpha": float(alpha),
        "B": float(np.exp(log_b)),
        "beta": float(beta),
        "rms": float(np.sqrt(np.mean(found.fun**2))),
    }


def format_table(rows: Sequence[dict]) -> str:
    """The finished cells as a text table."""
    header = ["cell", "weights", "tokens/weight", "FLOPs", "nats/token", "probe", "layer"]
    lines = [
        [
            row["name"],
            f"{row['parameters']:,}",
            row["tokens_per_parameter"],
            f"{row['flops']:.2e}",
            f"{row['valid_nats_per_token']:.4f}",
            formatting.percent(row.get("probe_accuracy")),
            row.get("probe_layer", ""),
        ]
        for row in rows
    ]
    return formatting.table(header, lines) if lines else "No cell is finished."


def _format_plan(cells: Sequence[Cell], workdir: str) -> str:
    peak, warnings = measure_flops()
    speed = _UTILISATION * peak
    header = ["cell", "weights", "tokens/weight", "steps", "rate", "FLOPs", "minutes", ""]
    lines = []
    for cell in cells:
        path = os.path.join(workdir, "cells", cell.name, "result.json")
        lines.append(
            [
                cell.name,
                f"{cell.parameters:,}",
                cell.tokens_per_parameter,
                f"{cell.num_steps:,}",
                f"{cell.learning_rate:g}",
                f"{cell.flops:.2e}",
                f"{cell.flops / speed / 60:.1f}",
                "finished" if os.path.exists(path) else "",
            ]
        )
    total = sum(cell.flops for cell in cells) / speed / 60
    return (
        formatting.table(header, lines)
        + f"\n{len(cells)} cells, about {total:.0f} minutes of training on this machine"
        + "".join(f"\n{warning}" for warning in warnings)
    )


def _as_csv(rows: Sequence[dict]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
