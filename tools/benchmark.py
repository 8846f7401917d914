"""Measures speed and memory beside other implementations, in one table.

python -m tools.benchmark [--workdir=DIR] [--parts=train_nano,train_s,...] [--repeats=9]

Rivals need `pip install -r requirements-bench.txt`; without, their rows say so. On a GPU:
KERAS_BACKEND=jax python -m tools.benchmark --parts=peak_large,train_s,train_m,train_l \
    --precision=bfloat16 --batch_size=16
"""

import os

from absl import flags

from igpt_tf import cli, runtime
from igpt_tf.benchmark import parts
from igpt_tf.errors import InputError

flags.DEFINE_string("workdir", "runs/benchmark", "Where benchmark.json and benchmark.txt go.")
flags.DEFINE_list(
    "parts", list(parts.DEFAULT_PARTS), f"What to measure, of {', '.join(parts.PARTS)}."
)
flags.DEFINE_integer("repeats", 9, "Turns of each rival; long ones take a third, at least 3.", 1)
flags.DEFINE_integer("threads", None, "Of every rival alike; all cores unless given.", 1)
flags.DEFINE_integer("batch_size", None, "Instead of each model part's own.", 1)
flags.DEFINE_enum("precision", "float32", ("float32", "bfloat16"), "Of our side.")


def main() -> None:
    """Flags -> `measuring.run` -> a table and a JSON file."""
    from igpt_tf import files
    from igpt_tf.benchmark import measuring, table

    values = flags.FLAGS
    for name in ("repeats", "threads", "batch_size"):
        if values[name].value is not None and values[name].value < 1:
            raise InputError(f"--{name} is at least 1. Received: {name}={values[name].value}")
    chosen = parts.chosen(values.parts, values.batch_size)
    workdir = files.make_workdir(values.workdir)
    result = measuring.run(
        chosen,
        repeats=values.repeats,
        precision=values.precision,
        threads=values.threads or runtime.num_cores(),
    )
    text = table.of(result["parts"], chosen)
    files.write_json(os.path.join(workdir, "benchmark.json"), result)
    with open(os.path.join(workdir, "benchmark.txt"), "w", encoding="utf-8") as file:
        file.write(text + "\n")
    print(text)


if __name__ == "__main__":
    cli.run(main)
