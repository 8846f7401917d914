"""Measures speed and memory compared with other implementations, in one table.

python -m tools.benchmark [--workdir=DIR] [--parts=train_width256,train_s,scaling,...] [--repeats=9]

The other implementations need `pip install -r requirements-bench.txt`; otherwise their rows say
"not installed". A processor with AVX-512 behaves like one with AVX2 under
  ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2
which the first line of the table records. On a GPU:
  python -m tools.benchmark --backend=jax --parts=peak_large,train_s,train_m,train_l \
      --precision=bfloat16 --batch_size=16
"""

import os

from absl import flags

from igpt_tf import cli, files, runtime
from igpt_tf.benchmark import benchmark, workloads
from igpt_tf.errors import InputError

_NAMES = ", ".join([*workloads.GROUPS, *workloads.PARTS])
flags.DEFINE_string("workdir", "runs/benchmark", "Folder for benchmark.json and benchmark.txt.")
flags.DEFINE_list("parts", ["default"], f"What to measure: {_NAMES}.")
flags.DEFINE_integer(
    "repeats", 9, "Runs per implementation; long ones take a third, at least 3.", 1
)
flags.DEFINE_integer("threads", None, "CPU threads per implementation (default: all cores).", 1)
flags.DEFINE_integer("batch_size", None, "Batch size of every model (default: each part's own).", 1)
flags.DEFINE_enum("precision", "float32", ("float32", "bfloat16"), "Precision of igpt_tf.")
flags.DEFINE_enum("backend", "tensorflow", ("tensorflow", "jax"), "Backend of Keras.")


def main() -> None:
    """Runs the benchmark and writes a table and a JSON file."""
    flag = flags.FLAGS
    for name in ("repeats", "threads", "batch_size"):
        if flag[name].value is not None and flag[name].value < 1:
            raise InputError(f"--{name} must be at least 1. Received: {name}={flag[name].value}")
    parts = workloads.select_parts(flag.parts, flag.backend, flag.batch_size)
    workdir = files.make_workdir(flag.workdir)
    result = benchmark.run(
        parts,
        repeats=flag.repeats,
        precision=flag.precision,
        threads=flag.threads or runtime.num_cores(),
        backend=flag.backend,
    )
    text = benchmark.format_result(result, parts)
    files.write_json(os.path.join(workdir, "benchmark.json"), result)
    files.write_text(os.path.join(workdir, "benchmark.txt"), text + "\n")
    print(text)


if __name__ == "__main__":
    cli.run(main)
