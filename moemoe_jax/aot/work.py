"""What a compiled program makes one device do: matrix products, and traffic with its memory."""

from collections.abc import Iterator
import math
import re

from moemoe_jax.aot.hlo import Array, Computation, Instruction, Module

# These move nothing, or only say what others move.
_FREE = frozenset(
    re.findall(
        r"\S+",
        "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
        "partition-id replica-id opt-barrier add-dependency async-start async-update async-done",
    )
)
_READS_PART = ("dynamic-slice", "gather")


def total_flops(module: Module) -> float:
    """Operations of all matrix products, two a multiplication and addition."""
    return sum(run.times * product_flops(run.instruction, run.computation) for run in module.runs())


def product_flops(instruction: Instruction, computation: Computation) -> float:
    """Operations of a `dot`, a `convolution` or a kernel that says its own; 0 for anything else."""
    if instruction.opcode == "dot":
        left = computation.arrays(instruction.operands[0])[0].dims
        contracted = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))
        return 2.0 * instruction.arrays[0].size * math.prod(left[int(d)] for d in contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, computation)
    return _told(instruction, "flops") or 0.0


def _told(instruction: Instruction, what: str) -> float | None:
    """What a kernel was said to cost, where it is one and that was said."""
    if instruction.opcode != "custom-call":
        return None
    estimate = instruction.attributes.partition("cost_estimate")[2].partition("}")[0]
    found = re.search(rf"\b{what}\W+(\d+)", estimate)
    return float(found[1]) if found else None


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """TPUs know products only as convolutions, with batch dimensions as dilated spatial ones."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    lhs, rhs = (computation.arrays(name)[0].dims for name in instruction.operands[:2])
    out = instruction.arrays[0].dims
    left, right, result = labels.groups()
    pairs = 1.0  # of an output and a kernel position that meet an element, over all spatial axes
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    window = window[1] if window else ""
    for axis in sorted(set(right) - {"i", "o"}):
        pairs *= _positions(
            lhs[left.index(axis)],
            rhs[right.index(axis)],
            out[result.index(axis)],
            {key: _field(window, key, int(axis)) for key in ("stride", "lhs_dilate", "rhs_dilate")},
            _low_padding(window, int(axis)),
        )
    outputs = out[result.index("b")] * out[result.index("f")]
    batches = int(instruction.attribute("batch_group_count") or 1)
    return 2.0 * pairs * outputs * rhs[right.index("i")] / batches


def _positions(size: int, kernel: int, outputs: int, steps: dict[str, int], padding: int) -> int:
    stride, base, spread = steps["stride"], steps["lhs_dilate"], steps["rhs_dilate"]
    last = (size - 1) * base
    count = 0
    for k in range(kernel):
        at = k * spread - padding
        if base == 1:
            # o * stride + at must lie in 0..last.
            low = max(0, -(at // stride))
            high = min(outputs - 1, (last - at) // stride)
            count += max(0, high - low + 1)
        else:
            places = (o * stride + at for o in range(outputs))
            count += sum(0 <= place <= last and place % base == 0 for place in places)
    return count


def _field(window: str, key: str, axis: int) -> int:
    found = re.search(rf"\b{key}=([\dx]+)", window)
    return int(found[1].split("x")[axis]) if found else 1


def _low_padding(window: str, axis: int) -> int:
    found = re.search(r"\bpad=([\d_x\-]+)", window)
    return int(found[1].split("x")[axis].split("_")[0]) if found else 0


def hbm_bytes(module: Module) -> float:
    """Bytes read from and written to the device's memory, instruction by instruction.

    What a fusion computes inside moves nothing, nor does what the compiler put in on-chip memory. A
    slice of a stacked array counts as a slice, an update in place as what it writes, and a kernel
    as what it says.
    """
    return sum(
        run.times * _traffic(module, run.instruction, run.computation)
        for run in module.runs()
        if not run.fused
    )


def _traffic(module: Module, instruction: Instruction, computation: Computation) -> float:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or "AllocateBuffer" in instruction.attributes:
        return 0.0
    told = _told(instruction, "bytes_accessed")
    if told is not None:
        return told
    operands = [computation.arrays(name) for name in instruction.operands]
    if opcode in _READS_PART:
        return 2.0 * _stored(instruction.arrays)
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2.0 * _stored(operands[-1] if opcode == "scatter" else operands[1])
    if opcode == "fusion":
        called = module.called(instruction)
        read = sum(
            min(_stored(arrays), _read_of_parameter(module, called, index))
            for index, arrays in enumerate(operands)
        )
        written = sum(
            min(_stored((array,)), _written(module, called, index))
            for index, array in enumerate(instruction.arrays)
        )
        return read + written
    return _stored(instruction.arrays) + sum(map(_stored, operands))


def _stored(arrays: tuple[Array, ...]) -> float:
    return sum(array.bytes for array in arrays if not array.on_chip)


def _read_of_parameter(module: Module, called: Computation, index: int) -> float:
    """Bytes that a fusion reads of its `index`-th operand: infinite for all that there are."""
    return _read(module, called, _parameter(called, index))


def _parameter(called: Computation, index: int) -> str:
    return next(
        i.name
        for i in called.instructions.values()
        if i.opcode == "parameter" and i.literal == str(index)
    )


def _read(module: Module, called: Computation, value: str) -> float:
    """Bytes that are read of a value within a fusion, likewise."""
    total = 0.0
    for user, name in _users(called, value):
        if user.opcode in _READS_PART and user.operands[0] == name:
            total += sum(array.bytes for array in user.arrays)
        elif user.opcode == "fusion":
            inner = module.called(user)
            for position, operand in enumerate(user.operands):
                if operand == name:
                    total += _read_of_parameter(module, inner, position)
                    if _is_bitcast(inner, position):
                        total += _read(module, called, user.name)
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
            return math.inf
    return total


def _is_bitcast(called: Computation, index: int) -> bool:
    """Whether a fusion's result is its `index`-th operand, by another shape."""
    part = called.root
    while part.opcode == "bitcast":
        part = called.instructions[part.operands[0]]
    return part.name == _parameter(called, index)


def _users(called: Computation, name: str) -> Iterator[tuple[Instruction, str]]:
    """Who uses a value, seen through bitcasts; with the name under which they use it."""
    for instruction in called.instructions.values():
        if name in instruction.operands:
            if instruction.opcode == "bitcast":
                yield from _users(called, instruction.name)
            else:
                yield instruction, name


def _written(module: Module, called: Computation, index: int) -> float:
    """Bytes that a fusion writes of its `index`-th result: of an update in place, the update."""
    part = called.root
    if part.opcode == "tuple":
        if len(part.operands) != len(part.arrays):  # a tuple within
            return math.inf
        part = called.instructions[part.operands[index]]
        index = 0
    while part.opcode in ("bitcast", "get-tuple-element"):
        if part.opcode == "get-tuple-element":
            index = int(part.attribute("index"))
        part = called.instructions[part.operands[0]]
    if part.opcode == "fusion":
        return _written(module, module.called(part), index)
    if part.opcode == "dynamic-update-slice":
        return sum(array.bytes for array in called.arrays(part.operands[1]))
    return math.inf
