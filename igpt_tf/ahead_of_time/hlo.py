"""What an optimised HLO module computes, and what it reads from and writes to a device's memory.

XLA's own cost analysis is not available for a GPU that is not there, and counts the body of a loop
once. Here every kernel, an operation or a fusion of operations, counts as often as it runs:

* Arithmetic: matrix products and convolutions, a multiplication and an addition as two.
* Memory: each kernel reads its inputs and writes its results once. Of an input that it only slices,
  the slice counts; of a result that it updates in place, the update. Arrays in a TPU's on-chip
  memory (memory space 1) do not count; the copies to and from it do.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "token": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
# They move no data: their results are names of other arrays.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("copy-done", "slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done"),
    *("async-done", "async-update", "opt-barrier", "partition-id", "replica-id"),
}
_VIEWS = {"bitcast", "reshape", "transpose", "copy", "convert"}  # inside of a fusion
_SLICES = {"slice", "dynamic-slice", "gather"}


class Array(NamedTuple):
    """An array of a module.

    Attributes:
        dtype: XLA's name of the type.
        dims: Its shape.
        on_chip: Whether it lies in a TPU's on-chip memory.
    """

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool

    @property
    def num_bytes(self) -> int:
        """Bytes in the device's memory."""
        bits = _BITS.get(self.dtype) or int(re.sub(r"\D", "", self.dtype) or 0)
        return 0 if self.on_chip else math.prod(self.dims) * bits // 8


class Instruction(NamedTuple):
    """An instruction of a computation: `name = results opcode(operands), attributes`."""

    name: str
    is_root: bool
    results: list[Array]
    opcode: str
    operands: list[str]
    attributes: str


class Kernel(NamedTuple):
    """An instruction that runs on the device.

    Attributes:
        name: Its name.
        count: How often it runs.
        depth: Number of loops around it.
        flops: Floating-point operations of its products, per run.
        read: (Array, bytes read) of each input, per run.
        written: (Array, bytes written) of each result, per run.
        cycles: The compiler's estimate of its duration, 0 without one.
    """

    name: str
    count: int
    depth: int
    flops: int
    read: list[tuple[Array, int]]
    written: list[tuple[Array, int]]
    cycles: int

    @property
    def num_bytes(self) -> int:
        """Bytes read and written per run."""
        return sum(size for _, size in (*self.read, *self.written))


class Module:
    """An optimised HLO module.

    Args:
        text: The module as XLA prints it.
    """

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._entry = None
        instructions = {}
        for line in text.splitlines():
            if found := _INSTRUCTION.match(line):
                one = _parse(*found.groups())
                instructions[one.name] = one
            elif found := _COMPUTATION.match(line):
                is_entry, name = found.groups()
                instructions = self._computations.setdefault(name, {})
                self._entry = name if is_entry else self._entry

    def kernels(self) -> Iterator[Kernel]:
        """Yields the kernels of the module in the order in which they run."""
        yield from self._kernels(self._entry, 1, 0)

    def _kernels(self, computation: str, count: int, depth: int) -> Iterator[Kernel]:
        instructions = self._computations[computation]
        for one in instructions.values():
            if one.opcode == "while":
                times = count * self._trips(one, instructions)
                yield from self._kernels(_called(one, "body"), times, depth + 1)
            elif one.opcode in ("call", "async-start"):
                called = _called(one, "to_apply") or _called(one, "calls")
                yield from self._kernels(called, count, depth)
            elif one.opcode == "conditional":
                for branch in re.findall(r"%([\w.-]+)", one.attributes.split("metadata")[0]):
                    if branch in self._computations:
                        yield from self._kernels(branch, count, depth)
            elif one.opcode not in _FREE and "AllocateBuffer" not in one.attributes:
                yield self._kernel(one, instructions, count, depth)

    def _trips(self, loop: Instruction, instructions: dict[str, Instruction]) -> int:
        """How often a loop runs. The compiler of a TPU does not say it, but has its limits."""
        if found := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found[1])
        condition = self._computations[_called(loop, "condition")]
        [compare] = [one for one in condition.values() if one.is_root]
        counter, limit = (condition[name] for name in compare.operands)
        index = int(re.search(r"index=(\d+)", counter.attributes)[1])
        first = instructions[instructions[loop.operands[0]].operands[index]]
        while first.opcode != "constant":
            first = instructions[first.operands[0]]
        if "direction=LT" not in compare.attributes:
            raise ValueError(f"unknown form of a loop: {compare}")
        return int(limit.operands[0]) - int(first.operands[0])

    def _kernel(self, one, instructions, count, depth) -> Kernel:
        inputs = [instructions[name].results for name in one.operands if name in instructions]
        inputs = [arrays[0] if len(arrays) == 1 else None for arrays in inputs]
        written = [(array, array.num_bytes) for array in one.results]
        fused = self._computations.get(_called(one, "calls") or "")
        if one.opcode == "fusion":
            read = [
                (array, min(array.num_bytes, self._bytes_read(fused, parameter)))
                for array, parameter in zip(inputs, _parameters(fused), strict=True)
                if array
            ]
            written = _updates(fused, written)
            flops = self._fused_flops(fused)
        else:
            read = [(array, array.num_bytes) for array in inputs if array]
            flops = _flops(one, instructions)
            if one.opcode.endswith("-start"):  # (source, destination, context)
                arrays = [x for x in one.results if x.dims][-1:]
                written = [(x, x.num_bytes) for x in arrays]
                read = [(x, min(x.num_bytes, _full_size(arrays))) for x, _ in read]
            elif one.opcode in _SLICES:
                read = [(x, min(size, _full_size(one.results))) for x, size in read]
            elif one.opcode == "dynamic-update-slice":
                read, update = read[1:2], inputs[1]
                written = [(one.results[0], min(written[0][1], _full_size([update])))]
        cycles = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
        cycles = int(cycles[1]) if cycles else 0
        return Kernel(one.name, count, depth, flops, read, written, cycles)

    def _bytes_read(self, fused: dict[str, Instruction], name: str) -> int:
        """Bytes that a fusion reads of an array: slices of it, or all of it."""
        total = 0
        for user in fused.values():
            if name not in user.operands or user.opcode == "parameter":
                continue
            if user.opcode in _VIEWS:
                total += 2**62 if user.is_root else self._bytes_read(fused, user.name)
            elif user.opcode in _SLICES and user.operands[0] == name:
                total += _full_size(user.results)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue  # written in place
            elif user.opcode == "fusion":
                inner = self._computations[_called(user, "calls")]
                parameter = _parameters(inner)[user.operands.index(name)]
                total += self._bytes_read(inner, parameter)
            else:
                return 2**62
        return total

    def _fused_flops(self, fused) -> int:
        total = 0
        for one in fused.values():
            if one.opcode == "fusion":
                total += self._fused_flops(self._computations[_called(one, "calls")])
            else:
                total += _flops(one, fused)
        return total


def _parse(root, name, rest) -> Instruction:
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    results, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    operands, attributes = rest[:end], rest[end + 1 :]
    arrays = [
        Array(dtype, tuple(map(int, filter(None, dims.split(",")))), "S(1)" in (layout or ""))
        for dtype, dims, layout in _ARRAY.findall(results)
    ]
    # A parameter has its number: with leading zeros, text is in the order of the arguments.
    if opcode in ("parameter", "constant"):
        names = [operands.zfill(6)]
    else:
        names = re.findall(r"%([\w.-]+)", operands)
    return Instruction(name, bool(root), arrays, opcode, names, attributes)


def _closing(text: str) -> int:
    """Index of the bracket that closes the first one."""
    depth = 0
    for index, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if not depth:
            return index
    raise ValueError(text)


def _called(one: Instruction, kind: str) -> str | None:
    found = re.search(rf"\b{kind}=%?([\w.-]+)", one.attributes)
    return found and found[1]


def _full_size(arrays: list[Array]) -> int:
    """Bytes of arrays, wherever they lie."""
    return sum(array._replace(on_chip=False).num_bytes for array in arrays)


def _parameters(fused: dict[str, Instruction]) -> list[str]:
    """Names of a computation's parameters, in the order of its arguments."""
    found = [one for one in fused.values() if one.opcode == "parameter"]
    return [one.name for one in sorted(found, key=lambda one: one.operands)]


def _updates(fused, written) -> list[tuple[Array, int]]:
    """Results of a fusion with their bytes; of those updated in place, the update's."""
    [root] = [one for one in fused.values() if one.is_root]
    roots = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    sizes = []
    for one, (array, size) in zip(roots, written, strict=False):
        while one.opcode in _VIEWS and one.operands[0] in fused:
            one = fused[one.operands[0]]
        if one.opcode == "dynamic-update-slice":
            size = min(size, _full_size(fused[one.operands[1]].results))
        sizes.append((array, size))
    return sizes


def _flops(one: Instruction, scope: dict[str, Instruction]) -> int:
    """Floating-point operations of a matrix product or convolution, 0 of anything else."""
    if one.opcode == "dot":
        left = scope[one.operands[0]].results[0].dims
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)[1]
        depth = math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
        return 2 * math.prod(one.results[0].dims) * depth
    if one.opcode == "convolution":
        left, right = (scope[name].results[0].dims for name in one.operands[:2])
        return _convolution_flops(left, right, one)
    if one.opcode == "custom-call" and "gemm" in one.attributes:
        left = scope[one.operands[0]].results[0].dims
        contracted = re.search(r'"lhs_contracting_dimensions":\["(\d+)"\]', one.attributes)
        return 2 * math.prod(one.results[0].dims) * left[int(contracted[1])] if contracted else 0
    return 0


def _convolution_flops(left, right, one: Instruction) -> int:
    """On a TPU every matrix product is one; its batch axes are windows with one valid position."""
    of_left, of_right, of_result = re.search(
        r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes
    ).groups()
    result = one.results[0].dims
    total = 2 * result[of_result.index("b")] * result[of_result.index("f")]
    total *= right[of_right.index("i")]
    window = re.search(r"window=\{([^}]*)\}", one.attributes)
    window = dict(re.findall(r"(\w+)=([\dx_-]+)", window[1] if window else ""))
    for axis in range(len(result) - 2):
        of_axis = {name: values.split("x")[axis] for name, values in window.items()}
        low = int(of_axis.get("pad", "0_0").split("_")[0])
        stride, dilation = int(of_axis.get("stride", 1)), int(of_axis.get("rhs_dilate", 1))
        base = int(of_axis.get("lhs_dilate", 1))
        size = left[of_left.index(str(axis))]
        total *= sum(
            0 <= (place := position * stride + tap * dilation - low) <= (size - 1) * base
            and place % base == 0
            for position in range(result[of_result.index(str(axis))])
            for tap in range(right[of_right.index(str(axis))])
        )
    return total
