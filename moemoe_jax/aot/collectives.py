"""The collectives of a compiled program: what each device sends, and why."""

import dataclasses
import math
import re

from moemoe_jax.aot.hlo import Array, Instruction, Module, Run

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

# What a ring of n devices sends from each, in units of (n-1)/n of the whole array.
_SHARES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "all-to-all": 1}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: of `KINDS`.
      group: devices that take part together.
      payload: bytes of the whole array on a device: what a gather gives, what a sum goes over.
      times: how often it runs in a step.
      shape: of the array, as text.
      source: where in the traced function it comes from.
    """

    kind: str
    group: int
    payload: float
    times: float
    shape: str
    source: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step, by the best ring."""
        return self.times * sent(self.kind, self.payload, self.group)


def sent(kind: str, payload: float, group: int) -> float:
    """Bytes that each of `group` devices sends for one collective over `payload` bytes."""
    if kind == "collective-permute":
        return payload
    return _SHARES[kind] * payload * (group - 1) / group


def collectives(module: Module) -> list[Collective]:
    """Lists those in which more than one device takes part, the largest first."""
    found = []
    for run in module.runs():
        kind = run.instruction.opcode.removesuffix("-start")
        if kind not in KINDS or _goes_on(run):
            continue
        # A TPU sums and scatters in a fusion of an all-reduce and a slice.
        if kind == "all-reduce" and run.computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        group = _group(run.instruction, module.devices)
        arrays = _whole(run.instruction)
        payload = sum(array.bytes for array in arrays)
        if run.instruction.opcode.startswith("reduce-scatter"):
            payload *= group
        if group > 1:
            shape = " ".join(f"{a.dtype}[{','.join(map(str, a.dims))}]" for a in arrays)
            source = run.instruction.source
            found.append(Collective(kind, group, payload, run.times, shape, source))
    return sorted(found, key=lambda c: -c.sent)


def by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
    """Sums up: for each kind that occurs, how many run in a step and the bytes sent."""
    table = {}
    for kind in KINDS:
        these = [c for c in found if c.kind == kind]
        if these:
            count = sum(c.times for c in these)
            table[kind] = {"count": count, "bytes": sum(c.sent for c in these)}
    return table


def _goes_on(run: Run) -> bool:
    """Whether a collective was started elsewhere.

    A TPU hides one behind other work, in pieces: a fusion starts it, others that compute as well
    take it further, and one ends it. Each has the whole of it in its text, with a chain's number.
    """
    if "chain_id=" not in run.instruction.attributes:
        return False
    return not any(
        "AsyncCollectiveStart" in i.attributes for i in run.computation.instructions.values()
    )


def _whole(instruction: Instruction) -> tuple[Array, ...]:
    """The arrays that a collective is about: its results, without what an async start adds."""
    arrays = instruction.arrays
    if instruction.opcode == "collective-permute-start":
        return arrays[:1]
    if instruction.opcode == "all-gather-start":
        return arrays[len(arrays) // 2 :]
    return arrays


def _group(instruction: Instruction, devices: int) -> int:
    """How many devices take part together, by any of the ways in which groups are printed."""
    if instruction.opcode.startswith("collective-permute"):
        return 2
    text = instruction.attributes.partition("replica_groups=")[2]
    listed = re.match(r"\{\{([\d,]*)\}", text)
    if listed:
        return len(listed[1].split(","))
    iota = re.match(r"\[(\d+),(\d+)\]<=", text)
    if iota:
        return int(iota[2])
    # Between the axes and those that take part may stand the order of the devices.
    mesh = re.match(r"@?mesh\w*\[([^\]]*)\][^{]*\{([^}]*)\}", text)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if text and not text.startswith("{}"):
        raise ValueError(f"groups of devices in a form that is not known: {text[:100]}")
    return devices
