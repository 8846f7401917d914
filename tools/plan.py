"""Computes the memory, the batch size and the time of a run on given devices. Needs no data.

python -m tools.plan --gin_file=gin/runs/imagenet32_l_ar.gin --memory_gb=80 --flops=312e12

Models that do not fit one device are sharded: weights, gradients and optimizer state are divided
over the devices. Several sets of devices are planned one after the other:
  python -m tools.plan --gin_file=gin/runs/web64_xl_ar.gin --flops=312e12 \
      --memory_gb=80,40,16 --shards=8,16,64
--compile_for=h100 also asks the compiler of that device for the memory of a step, and takes the
device's memory and FLOP/s where no flags give them (`tools.compile` lists the devices).

Without --flops, this machine is measured for a second, and should be idle. The time assumes that
training reaches the fraction --utilisation of the FLOP/s.
"""

from absl import flags

from igpt_tf import cli, config, files, runtime
from igpt_tf.errors import InputError, check_choice

flags.DEFINE_list("memory_gb", None, "Memory per device in GB (10^9 bytes); several with commas.")
flags.DEFINE_float("flops", None, "Peak FLOP/s per device in the run's precision.", 1, 1e30)
flags.DEFINE_float("utilisation", 0.4, "Fraction of the FLOP/s that training is assumed to reach.")
flags.DEFINE_integer("replicas", 1, "Number of devices, each of which holds the whole model.", 1)
flags.DEFINE_list("shards", None, "Number of devices that share the model; one per --memory_gb.")
flags.DEFINE_string("compile_for", None, "Device of tools.compile, whose compiler is asked.")
flags.DEFINE_integer("image_size", None, "Height and width, if the run file does not state it.", 1)
flags.DEFINE_string("workdir", None, "Folder for plan.json (default: not written).")

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
    flag = flags.FLAGS
    cli.require_flags("gin_file", *(() if flag.compile_for else ("memory_gb",)))
    target = flag.compile_for and _target(flag)
    memory = [_number("memory_gb", text, float) for text in flag.memory_gb or ()] or [
        target.memory_bytes / 1e9
    ]
    counts = [_number("shards", text, int) for text in flag.shards or ()]
    if counts and (len(counts) != len(memory) or flag.replicas > 1):
        raise InputError(
            "--shards takes one number per --memory_gb, and excludes --replicas. Received: "
            f"memory_gb={','.join(flag.memory_gb or ())}, shards={','.join(flag.shards)}, "
            f"replicas={flag.replicas}"
        )
    if flag.workdir:
        files.make_workdir(flag.workdir)
    runtime.import_tensorflow()
    import igpt_tf.training.train  # noqa: F401 - registers what a run file may name
    from igpt_tf.training import plan as planning

    if target:
        import igpt_tf.ahead_of_time.report  # noqa: F401 - registers compile_run
    config.parse_flags()
    size = (flag.image_size, flag.image_size) if flag.image_size else planning.bound_image_size()
    if target and size is None:
        raise InputError("the run file does not state the image size; pass --image_size")
    config.copy_bindings("train", "plan", _FROM_TRAIN)
    size = size or _size_of_data(planning)
    precision = config.bound("plan.precision") or "float32"
    flops, warnings = flag.flops, planning.precision_warnings(flag.flops or 0, precision)
    if flops is None and target:
        check_choice("train.precision", precision, planning.PRECISIONS)
        flops = target.flops[precision]
    elif flops is None:
        flops, warnings = planning.measure_flops(precision)
    devices = [
        planning.Devices(gigabytes * 1e9, flops, flag.utilisation, count, bool(counts))
        for gigabytes, count in zip(memory, counts or [flag.replicas] * len(memory), strict=True)
    ]
    plans = planning.plan(
        devices=devices,
        image_size=size,
        compiled_bytes=target and _compiled_bytes(flag.compile_for, size),
        workdir=flag.workdir,
    )
    print("\n\n".join(map(planning.format_plan, plans)))
    for warning in warnings:
        print(f"Warning: {warning}.")


def _size_of_data(planning) -> tuple[int, int]:
    """(H, W) of the run's data set. Raises: InputError: It is not here."""
    config.copy_bindings("train", "source_image_size", ["source"])
    try:
        return planning.source_image_size()
    except InputError as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"the image size is not known ({reason}); pass --image_size") from None


def _target(flag):
    """The target of --compile_for, its compiler prepared."""
    from igpt_tf.ahead_of_time import compilers, targets

    target = targets.load(flag.compile_for)
    if flag.shards or flag.replicas > 1:
        raise InputError(
            "--compile_for plans for one device; tools.compile --chips compiles for several. "
            f"Received: compile_for={flag.compile_for}, replicas={flag.replicas}"
        )
    compilers.prepare(target)
    return target


def _compiled_bytes(target: str, size: tuple[int, int]):
    """See `plan`."""
    from igpt_tf.ahead_of_time import report

    config.copy_bindings("train", "compile_run", ["objective", "build_model", "precision"])

    def compiled_bytes(batch_size, steps, remat):
        with runtime.suppress_stderr():
            [found] = report.compile_run(
                target=target,
                image_size=size,
                batch_size=batch_size,
                gradient_accumulation_steps=steps,
                remat=(remat,),
            )
        return found.get("peak_bytes")

    return compiled_bytes


def _number(name: str, text: str, kind: type):
    try:
        return kind(text)
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"--{name} takes {what}. Received: {name}={text}") from None


if __name__ == "__main__":
    cli.run(main)
