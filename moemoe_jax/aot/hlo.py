"""A compiled program as text, read back: its instructions, and how often each of them runs.

The body of a loop is printed once, whatever the number of its turns, so whatever is counted in a
program (`work`, `collectives`) is counted here with the number of times that it runs.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "s2": 2, "u2": 2}
_ARRAY = re.compile(r"\b(pred|bf16|token|opaque|[sufc]\d+\w*)\[([^\]]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"(?:^|[\s,])%?([A-Za-z_][\w.\-]*)(?=\s*(?:,|$))")
_COMMENT = re.compile(r"/\*.*?\*/")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of an array: `dims` of `dtype`; `on_chip` is memory beside the HBM."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes, without the padding that a layout adds."""
        if self.dtype in ("token", "opaque"):
            return 0
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype) or int(digits[0])
        return self.size * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = arrays opcode(operands), attributes`."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    literal: str

    def attribute(self, name: str) -> str:
        """What stands behind `name=`, up to the comma or within the braces; "" if nowhere."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return found[1] if found else ""

    @property
    def source(self) -> str:
        """Where in the traced function it comes from, as far as the compiler kept it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in their order."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(i for i in self.instructions.values() if i.is_root)

    def arrays(self, name: str) -> tuple[Array, ...]:
        """The arrays of an operand."""
        return self.instructions[name].arrays if name in self.instructions else ()


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction, where it stands, how often it runs, and whether it is part of a fusion."""

    instruction: Instruction
    computation: Computation
    times: float
    fused: bool


class Module:
    """A program: `runs()` lists what it does.

    Args:
      text: of `compiled.as_text()`.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        settings = text.lstrip().partition("\n")[0]  # hundreds of thousands of characters
        partitions = re.search(r"num_partitions=(\d+)", settings)
        replicas = re.search(r"replica_count=(\d+)", settings)
        self.devices = int((partitions or replicas or [1, 1])[1])
        current: dict[str, Instruction] | None = None
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                current = {}
                self.computations[header[2]] = Computation(header[2], current)
                self.entry = header[2] if header[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and _START.match(line):
                instruction = _instruction(line)
                current[instruction.name] = instruction

    def runs(self) -> Iterator[Run]:
        """Every instruction that runs, fusions' own among them."""
        yield from self._runs(self.computations[self.entry], 1.0, fused=False)

    def _runs(self, computation: Computation, times: float, fused: bool) -> Iterator[Run]:
        for instruction in computation.instructions.values():
            yield Run(instruction, computation, times, fused)
            for called, turns, inside in self._called(instruction):
                yield from self._runs(called, times * turns, fused or inside)

    def _called(self, instruction: Instruction) -> Iterator[tuple[Computation, float, bool]]:
        """The computations that an instruction runs: each, how often, and if as a fusion."""
        opcode = instruction.opcode
        if opcode == "while":
            turns = self.trip_count(instruction)
            yield self._named(instruction.attribute("body")), turns, False
        elif opcode == "conditional":
            yield self._branch(instruction), 1.0, False
        elif opcode in ("fusion", "call", "async-start"):
            called = _CALLED.search(instruction.attributes)
            yield self.computations[called[1]], 1.0, opcode == "fusion"

    def _named(self, name: str) -> Computation:
        return self.computations[name.lstrip("%")]

    def called(self, fusion: Instruction) -> Computation:
        """The computation of a fusion."""
        return self._named(fusion.attribute("calls"))

    def trip_count(self, loop: Instruction) -> float:
        """How often a loop turns; at most, where it depends on the data (decoding).

        The compiler says it, or its name does what is usual (`nn/in_turn.py`), or the condition
        compares a counter from 0 with a constant. A loop without any of these counts once.
        """
        known = re.search(r'known_trip_count"?:?=?\{"?n"?:"?(\d+)', loop.attributes)
        if known:
            return float(known[1])
        usual = re.search(r"\busually_(\d+)_turns\)*/while$", loop.source)
        if usual:
            return float(usual[1])
        condition = self._named(loop.attribute("condition"))
        inside = [run.instruction for run in self._runs(condition, 1.0, fused=False)]
        constants = [
            int(i.literal)
            for i in inside  # a fusion may hold it
            if i.opcode == "constant" and i.literal.isdigit() and not i.arrays[0].dims
        ]
        return float(max(constants, default=1) or 1)

    def _branch(self, conditional: Instruction) -> Computation:
        """The branch that counts.

        A step has two kinds of them: dispatch to experts with a queue length that fits, of which
        the shortest is the usual one; and an update that is left out when something is not finite.
        Hence: the branch with the least matrix products among those that have any, or else the
        longest.
        """
        branches = self._branches(conditional)
        working = [b for b in branches if self._products(b.name)]
        if working:
            return min(working, key=lambda b: self._products(b.name))
        return max(branches, key=lambda b: len(b.instructions))

    def _branches(self, conditional: Instruction) -> list[Computation]:
        names = re.findall(r"%?([\w.\-]+)", conditional.attribute("branch_computations"))
        names = names or [
            conditional.attribute(f"{which}_computation").lstrip("%") for which in ("true", "false")
        ]
        return [self.computations[name] for name in names]

    @functools.cache  # noqa: B019 - a module lives as long as its report is made
    def _products(self, name: str) -> float:
        """Matrix products in a computation, in operations: of its own branches, the most."""
        from moemoe_jax.aot.work import product_flops

        computation, total = self.computations[name], 0.0
        for instruction in computation.instructions.values():
            total += product_flops(instruction, computation)
            if instruction.opcode == "conditional":
                total += max(self._products(b.name) for b in self._branches(instruction))
                continue
            for called, turns, _ in self._called(instruction):
                total += turns * self._products(called.name)
        return total


def _instruction(line: str) -> Instruction:
    line = _COMMENT.sub("", line)
    start = _START.match(line)
    shape, rest = _shape(line[start.end() :])
    opcode, _, rest = rest.partition("(")
    inside, attributes = _balanced(rest)
    opcode, has_operands = opcode.strip(), opcode.strip() not in ("constant", "parameter")
    # An operand may stand behind its type, whose commas are within brackets.
    names = _OPERAND.findall(inside) if has_operands else []
    return Instruction(
        name=start[2],
        opcode=opcode,
        arrays=_arrays(shape),
        operands=tuple(names),
        attributes=attributes,
        is_root=bool(start[1]),
        literal="" if has_operands else inside,
    )


def _shape(text: str) -> tuple[str, str]:
    """Cuts the type off the front: a tuple in parentheses, or one array."""
    if text.startswith("("):
        inside, rest = _balanced(text[1:])
        return inside, rest
    shape, _, rest = text.partition(" ")
    return shape, rest


def _balanced(text: str) -> tuple[str, str]:
    """Cuts the text before the parenthesis that closes, and what follows it."""
    depth = 1
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return text[:at], text[at + 1 :]
    return text, ""


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d.strip())
        # Memory space 0 is the HBM; scalars for semaphores and vector memory have others.
        found.append(Array(dtype, sizes, on_chip=bool(re.search(r"S\([1-9]", layout))))
    return tuple(found)
