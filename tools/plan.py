"""Computes the memory, the batch size and the time of a run on given devices. Needs no data.

python -m tools.plan --gin_file=gin/runs/imagenet32_l_ar.gin --memory_gb=80 --flops=312e12

Models that do not fit one device are sharded: weights, gradients and optimizer state are divided
over the devices. Several sets of devices are planned one after the other:
  python -m tools.plan --gin_file=gin/runs/web64_xl_ar.gin --flops=312e12 \
      --memory_gb=80,40,16 --shards=8,16,64
Without --flops, this machine is measured for a second. The time assumes that training reaches the
fraction --utilisation of the FLOP/s.
"""

from absl import flags

from igpt_tf import cli, config, files, runtime
from igpt_tf.errors import InputError

flags.DEFINE_list("memory_gb", None, "Memory per device in GB (10^9 bytes); several with commas.")
flags.DEFINE_float("flops", None, "Peak FLOP/s per device in the run's precision.", 1, 1e30)
flags.DEFINE_float("utilisation", 0.4, "Fraction of the FLOP/s that training is assumed to reach.")
flags.DEFINE_integer("replicas", 1, "Number of devices, each of which holds the whole model.", 1)
flags.DEFINE_list("shards", None, "Number of devices that share the model; one per --memory_gb.")
flags.DEFINE_integer("image_size", None, "Height and width, if the run file does not state it.", 1)
flags.DEFINE_string("workdir", None, "Folder for plan.json; none is written without it.")

_FROM_TRAIN = [
    "objective",
    "build_model",
    "build_optimizer",
    "batch_size",
    "num_steps",
    "precision",
]


def main() -> None:
    """Runs `plan` with flags and the bindings of a run file."""
    cli.require_flags("gin_file", "memory_gb")
    flag = flags.FLAGS
    memory = [_number("memory_gb", text) for text in flag.memory_gb]
    counts = [_number("shards", text) for text in flag.shards or ()]
    if counts and (len(counts) != len(memory) or flag.replicas > 1):
        raise InputError(
            "--shards takes one number per --memory_gb, and excludes --replicas. Received: "
            f"memory_gb={','.join(flag.memory_gb)}, shards={','.join(flag.shards)}, "
            f"replicas={flag.replicas}"
        )
    if flag.workdir:
        files.make_workdir(flag.workdir)
    runtime.import_tensorflow()
    import igpt_tf.training.train  # noqa: F401 - registers what a run file may name
    from igpt_tf.training import plan as planning

    config.parse_flags()
    size = (flag.image_size, flag.image_size) if flag.image_size else planning.bound_image_size()
    config.copy_bindings("train", "plan", _FROM_TRAIN if size else [*_FROM_TRAIN, "source"])
    precision = config.bound("plan.precision") or "float32"
    flops, warnings = flag.flops, planning.precision_warnings(flag.flops or 0, precision)
    if flops is None:
        flops, warnings = planning.measure_flops(precision)
    devices = [
        planning.Devices(gigabytes * 1e9, flops, flag.utilisation, int(count), bool(counts))
        for gigabytes, count in zip(memory, counts or [flag.replicas] * len(memory), strict=True)
    ]
    try:
        plans = planning.plan(devices=devices, image_size=size, workdir=flag.workdir)
    except InputError as error:
        if size:
            raise
        reason = str(error).split("\n")[0]
        raise InputError(f"the image size is not known ({reason}); pass --image_size") from None
    print("\n\n".join(map(planning.format_plan, plans)))
    for warning in warnings:
        print(f"Warning: {warning}.")


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--{name} takes numbers. Received: {name}={text}") from None


if __name__ == "__main__":
    cli.run(main)
