"""What a run file will take on a device: memory, batch, gradient accumulation, time. Needs no data.

python -m tools.plan --gin_file=gin/runs/imagenet32_l_ar.gin --memory_gb=80 [--flops=312e12]

Without --flops, the matrix products of this machine are timed for a second. The time assumes that
training reaches the share --utilisation of the FLOP/s. Each of --replicas devices holds the model.
"""

import os
import re

import gin
from absl import flags

from igpt_tf import cli, config, files, runtime
from igpt_tf.errors import InputError

flags.DEFINE_float("memory_gb", None, "Memory of a device in GB (10^9 bytes).", 0, 1e9)
flags.DEFINE_float(
    "flops", None, "FLOP/s of a device at its best, in the run's precision.", 1, 1e30
)
flags.DEFINE_float("utilisation", 0.4, "Share of the FLOP/s that training is assumed to reach.")
flags.DEFINE_integer("replicas", 1, "Number of devices.")
flags.DEFINE_integer("image_size", None, "Height and width, where the run file does not tell.")
flags.DEFINE_string("workdir", None, "Where plan.json goes, if anywhere.")

_BORROWED = ("objective", "build_model", "build_optimizer", "batch_size", "num_steps", "precision")


@gin.configurable
def plan(
    *,
    workdir,
    image_size,
    memory,
    flops,
    utilisation,
    replicas,
    objective,
    build_model,
    build_optimizer,
    batch_size,
    num_steps,
    precision="float32",
):
    """See `igpt_tf.training.plan`; the run's own part comes from what is bound to `train`."""
    from igpt_tf.model import abstract_model
    from igpt_tf.training import plan as planning
    from igpt_tf.training.trainer import set_precision

    set_precision("train.precision", precision)
    device = planning.Device(
        memory=memory,
        flops=planning.measured_flops(precision) if flops is None else flops,
        utilisation=utilisation,
        replicas=replicas,
    )
    result = planning.plan(
        abstract_model(lambda: build_model(image_size=image_size, causal=objective.causal)),
        build_optimizer(num_steps=num_steps, steps_per_epoch=0),
        device,
        batch_size=batch_size,
        num_steps=num_steps,
        precision=precision,
    )
    if workdir:
        files.write_json(os.path.join(workdir, "plan.json"), result)
    print(planning.summary(result, flops_are_measured=flops is None))


@gin.configurable
def image_size_of(*, source):
    """(H, W) of a source, which is built for it."""
    return source.image_size


def bound_image_size() -> tuple[int, int]:
    """(H, W) from the run file; its data set is built only where no binding tells.

    Raises:
        InputError: Neither tells.
    """
    from igpt_tf.data.images import size_pair

    try:
        source = str(gin.query_parameter("train.source"))
    except ValueError:
        raise InputError(
            "no data set is named; give a run file, such as --gin_file=gin/runs/digits_tiny_ar.gin"
        ) from None
    if "mixture" in source:
        source = str(gin.query_parameter("mixture.sources")[0])
    name = re.sub(r"\W*([\w/]+).*", r"\1", source)
    try:
        return size_pair(gin.query_parameter(f"{name}.image_size"))
    except ValueError:
        config.copy_bindings("train", "image_size_of", ("source",))
    try:
        return image_size_of()
    except InputError as error:
        what = str(error).split("\n")[0]
        raise InputError(f"the images' size is not told ({what}); give --image_size") from None


def main() -> None:
    """Flags -> configuration -> `plan`."""
    cli.require_flags("gin_file", "memory_gb")
    if flags.FLAGS.workdir:
        files.make_workdir(flags.FLAGS.workdir)
    runtime.import_tensorflow()
    import igpt_tf.training.train  # noqa: F401 - registers what a run file may name

    config.parse_flags()
    flag = flags.FLAGS
    config.copy_bindings("train", "plan", _BORROWED)
    side = flag.image_size
    plan(
        workdir=flag.workdir,
        image_size=(side, side) if side else bound_image_size(),
        memory=flag.memory_gb * 1e9,
        flops=flag.flops,
        utilisation=flag.utilisation,
        replicas=flag.replicas,
    )


if __name__ == "__main__":
    cli.run(main)
