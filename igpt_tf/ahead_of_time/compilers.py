"""The compilers of TPUs and NVIDIA GPUs, run on a host without a device.

They come with JAX: `libtpu` for TPUs and the CUDA plugin for GPUs (requirements-compile.txt). The
programs may be TensorFlow's: both export HLO. Names that JAX does not document are used in this
file only, and requirements-compile.txt pins the version that has them.
"""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Callable, Sequence

from igpt_tf.ahead_of_time.targets import Target
from igpt_tf.errors import InputError

_PACKAGES = {"tpu": ("jax", "libtpu"), "cuda": ("jax", "jax_plugins.xla_cuda12")}
_TOO_LARGE = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|[Rr]an out of memory")


class DoesNotFit(Exception):
    """The compiler refuses a program because it needs more memory than the device has."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler says about a program, per device.

    Attributes:
        argument_bytes: Inputs and state.
        result_bytes: Results that do not overwrite an argument.
        temporary_bytes: Everything else at the peak, and the code of a TPU.
        seconds: Duration of the compilation.
        module: The optimised HLO module as text.
    """

    argument_bytes: int
    result_bytes: int
    temporary_bytes: int
    seconds: float
    module: str

    @property
    def peak_bytes(self) -> int:
        """Memory that the program needs."""
        return self.argument_bytes + self.result_bytes + self.temporary_bytes


def check_packages(target: Target) -> None:
    """Raises: InputError if a package that compiles for the target is missing."""
    for name in _PACKAGES[target.compiler]:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise InputError(
                f"compiling for this target needs the packages of requirements-compile.txt "
                f"(`make compile` installs them). Received: missing={name.split('.')[0]}"
            )


def prepare(target: Target) -> None:
    """Sets what the compiler reads from the environment; to be called before JAX is imported.

    Raises:
        InputError: A package is missing.
    """
    check_packages(target)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if target.compiler == "tpu":
        import libtpu

        os.environ |= {
            "TPU_SKIP_MDS_QUERY": "1",  # no metadata server of Google Cloud
            "TPU_ACCELERATOR_TYPE": target.accelerator_type,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_LIBRARY_PATH": libtpu.get_library_path(),
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # the second program would end at a lock file
        }


def devices(target: Target, count: int = 1) -> list:
    """Devices to compile for; TPUs come in slices, of which one chip may be used.

    Raises:
        InputError: There is no slice of `count` chips.
    """
    from jax.experimental import topologies

    if target.compiler == "cuda":
        return topologies.get_topology_desc(
            "",
            platform="cuda",
            target_config=target.gpu_description,
            topology=f"1x1x{count}",
        ).devices
    if str(count) not in target.topologies:
        raise InputError(
            f"the number of chips must be one of {', '.join(target.topologies)}. "
            f"Received: chips={count}"
        )
    topology = topologies.get_topology_desc(target.topologies[str(count)], platform="tpu")
    return topology.devices[:count]


def trace_hlo(function: Callable, specs: Sequence) -> bytes:
    """Traces a function of tensors with TensorFlow.

    Args:
        function: Maps tensors to tensors.
        specs: `tf.TensorSpec` of each argument.

    Returns:
        Serialised HloModuleProto, for `compile_hlo`.
    """
    import tensorflow as tf

    compiled = tf.function(function, jit_compile=True, autograph=False)
    write = compiled.experimental_get_compiler_ir(*specs)
    return write(stage="hlo_serialized", platform_name="CPU")


def compile_hlo(target: Target, hlo: bytes, donated: tuple[tuple[int, int], ...]) -> Compiled:
    """Compiles a program for one device.

    Args:
        target: The device.
        hlo: Serialised HloModuleProto.
        donated: Pairs (argument, result) that share memory.

    Raises:
        DoesNotFit: The program needs more memory than the device has.
    """
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax, xla_client
    from jaxlib.mlir import ir

    device = devices(target)[0]
    module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo), context=mlir.make_ir_context())
    with module.context:
        [main] = [one for one in module.body.operations if ir.StringAttr(one.name).value == "main"]
        attributes = [ir.DictAttr.get({})] * len(main.type.inputs)
        for argument, result in donated:
            index = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), result)
            attributes[argument] = ir.DictAttr.get({"tf.aliasing_output": index})
        main.arg_attrs = ir.ArrayAttr.get(attributes)
    options = xla_client.CompileOptions()
    options.env_option_overrides = list(xla_options(target).items())
    start = time.perf_counter()
    try:
        executable = device.client.compile(module, _jax.DeviceList((device,)), options)
    except _jax.JaxRuntimeError as error:
        raise _does_not_fit(error) from None
    return read(executable, time.perf_counter() - start)


def compile_lowered(target: Target, lowered) -> Compiled:
    """Compiles what `jax.jit(...).lower(...)` returns. Raises: DoesNotFit."""
    import jax

    start = time.perf_counter()
    try:
        compiled = lowered.compile(xla_options(target))
    except jax.errors.JaxRuntimeError as error:
        raise _does_not_fit(error) from None
    executable = compiled.runtime_executable()
    return read(executable, time.perf_counter() - start)


def xla_options(target: Target) -> dict[str, str]:
    """Options of XLA. Autotuning runs kernels, for which there is no device."""
    return {"xla_gpu_autotune_level": "0"} if target.compiler == "cuda" else {}


def read(executable, seconds: float) -> Compiled:
    """What an executable says about itself."""
    memory = executable.get_compiled_memory_stats()
    return Compiled(
        argument_bytes=memory.argument_size_in_bytes,
        result_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        seconds=seconds,
        module=executable.hlo_modules()[0].to_string(),
    )


def _does_not_fit(error: Exception) -> Exception:
    """`DoesNotFit` with the compiler's first line, or the error itself if it is another one."""
    message = str(error)
    return DoesNotFit(message.split("\n")[0]) if _TOO_LARGE.search(message) else error
