"""What of a folder goes where in a model, worked out and checked before a tensor is read."""

from collections.abc import Collection, Iterable, Mapping, Sequence
import dataclasses
import difflib
import re

import numpy as np

from moemoe_jax.errors import UserError
from moemoe_jax.interop.maps import Rule, TensorMap, Transform, expected_sources
from moemoe_jax.interop.slots import Slot
from moemoe_jax.interop.weights import Weights
from moemoe_jax.parallel.sharding import table

EXACT = ("float32", "bfloat16", "float16")  # what float32 holds without loss
CHUNK_BYTES = 2**24  # of a tensor, while two are compared


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where one slot's values come from.

    Attributes:
      weights: the folder.
      source: the tensor's name there.
      transform: from there to here.
      copied: False for an expert that starts as a copy of a dense block (upcycling).
      row: the row of the map, for the table.
    """

    weights: Weights
    source: str
    transform: Transform
    copied: bool
    row: Rule

    def read(self) -> np.ndarray:
        """The values in our layout, float32."""
        return self.transform.forward(self.weights.read(self.source)).astype(np.float32, copy=False)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What fills a model.

    Attributes:
      placements: by slot.
      new: slots that are initialised.
      ignored: (folder, tensor) pairs that are not needed.
    """

    placements: dict[str, Placement]
    new: list[str]
    ignored: list[tuple[str, str]]


def make_plan(
    parts: Sequence[tuple[Weights, TensorMap]], slots: Mapping[str, Slot], new: Sequence[str] = ()
) -> Plan:
    """Assigns every tensor of the folders and every slot of the model, or says which has no place.

    Args:
      parts: each folder with the map of its names.
      slots: of the model.
      new: regular expressions of slots that no folder fills.

    Raises:
      UserError: a tensor without a slot, a slot without a tensor, or a shape or dtype that does
        not fit; names the first, and what comes nearest to it.
    """
    placements, ignored, unplaced = {}, [], []
    for weights, tensor_map in parts:
        canonical = _canonical(weights, tensor_map)
        stands_for = {canonical[name]: name for _, name in tensor_map.same if name in canonical}
        for source in _sources(weights, tensor_map, canonical, ignored):
            known_as = stands_for.get(source, source)
            found = _place(weights, source, tensor_map.targets(known_as), slots)
            if not found:
                unplaced.append((weights, source, tensor_map))
            placements |= found
    rest = [name for name in slots if name not in placements]
    # A router has no source where its experts start as copies of a dense block.
    upcycled = {_block(name) for name, found in placements.items() if not found.copied}
    allowed = [*new, *(re.escape(block) + "/router/.*" for block in upcycled)]
    allow = re.compile("|".join(f"(?:{pattern})" for pattern in allowed) or r"(?!)")
    missing = [name for name in rest if not allow.fullmatch(name)]
    if unplaced:
        raise _no_place(*unplaced[0], missing)
    if missing:
        raise _no_tensor(missing[0], parts)
    for name, placement in placements.items():
        _check(name, placement, slots[name])
    return Plan(placements, rest, ignored)


def _block(name: str) -> str:
    """The mixture that a slot of an expert belongs to."""
    return name.partition("/feed_forward/")[0] + "/feed_forward"


def _canonical(weights: Weights, tensor_map: TensorMap) -> dict[str, str]:
    """Which tensor of the folder stands for each alias, and for its name: if there, the latter."""
    names, found = set(weights.names()), {}
    for alias, name in tensor_map.same:
        first = name if name in names else alias
        if first in names:
            found.setdefault(name, first)
            found[alias] = found[name]
    return found


def _sources(
    weights: Weights,
    tensor_map: TensorMap,
    canonical: Mapping[str, str],
    ignored: list[tuple[str, str]],
) -> list[str]:
    """The tensors that must have a place; adds the others to `ignored`."""
    kept = []
    for name in weights.names():
        first = canonical.get(name, name)
        if tensor_map.is_ignored(name):
            ignored.append((str(weights.folder), name))
        elif first == name:
            kept.append(name)
        elif equal(weights, name, first):
            ignored.append((str(weights.folder), name))
        else:
            raise UserError(
                f"{weights.folder} has other values in {name} than in {first}: this model has "
                "one table for both; save the model with tied embeddings"
            )
    return kept


def equal(weights: Weights, first: str, second: str) -> bool:
    """Whether two tensors are equal, a few rows of them in memory at a time."""
    shape, dtype = weights.shape(first), weights.dtype(first)
    if (shape, dtype) != (weights.shape(second), weights.dtype(second)):
        return False
    if not shape:
        return bool(weights.read(first) == weights.read(second))
    row = max(1, int(np.prod(shape[1:])) * dtype.itemsize)
    step = max(1, CHUNK_BYTES // row)
    return all(
        np.array_equal(*(weights.read_slice(n, (slice(at, at + step),)) for n in (first, second)))
        for at in range(0, shape[0], step)
    )


def _place(
    weights: Weights,
    source: str,
    targets: Iterable[tuple[Rule, str]],
    slots: Mapping[str, Slot],
) -> dict[str, Placement]:
    """The slots that a tensor fills: its namesakes, or each expert made of its dense block."""
    found = {}
    for row, target in targets:
        copied = target in slots
        for name in [target] if copied else _experts_of(target, slots):
            found[name] = Placement(weights, source, row.transform, copied, row)
    return found


def _experts_of(target: str, slots: Mapping[str, Slot]) -> list[str]:
    names = []
    while (name := f"{target}/{len(names)}") in slots:
        names.append(name)
    return names


def _check(name: str, placement: Placement, slot: Slot) -> None:
    weights, source = placement.weights, placement.source
    dtype, shape = weights.dtype(source), weights.shape(source)
    if dtype.name not in EXACT:
        raise UserError(
            f"{weights.file(source)} holds {dtype} in {source}; parameters are made of "
            f"{', '.join(EXACT)}: save the model in one of those"
        )
    if placement.transform.shape(shape) != slot.shape:
        wanted = placement.transform.inverse_shape(slot.shape)
        raise UserError(
            f"{weights.file(source)} has {source} in shape {shape}, but by {weights.folder}/"
            f"config.json and the settings it is {wanted} (for {name}): of different models"
        )


def _near(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.7)
    return f"; nearest: {', '.join(close)}" if close else ""


def _no_place(
    weights: Weights, source: str, tensor_map: TensorMap, missing: Collection[str]
) -> UserError:
    """The error for a tensor that no slot takes."""
    targets = [target for _, target in tensor_map.targets(source)]
    if targets:
        return UserError(
            f"{weights.file(source)} has {source}, which belongs to {targets[0]}, but by "
            f"{weights.folder}/config.json and the settings the model has no such parameter"
            f"{_near(targets[0], missing)}"
        )
    near = _near(source, expected_sources(tensor_map, missing))
    return UserError(
        f"{weights.file(source)} has {source}, which no model of the type in {weights.folder}/"
        f"config.json has{near}"
    )


def _no_tensor(missing: str, parts: Sequence[tuple[Weights, TensorMap]]) -> UserError:
    """The error for a slot that no tensor fills."""
    for weights, tensor_map in parts:
        found = tensor_map.source(missing)
        if found:
            source = found[1]
            return UserError(
                f"{weights.folder} has no tensor {source} for the parameter {missing}"
                f"{_near(source, weights.names())}"
            )
    folders = ", ".join(str(weights.folder) for weights, _ in parts)
    return UserError(
        f"the model has a parameter {missing}, which nothing in {folders} is for: change the "
        "settings under model"
    )


def format_plan(plan: Plan) -> str:
    """A table of what went where: a line for each row of the maps, not for each layer."""
    counts: dict[tuple[str, str, str], set[str]] = {}
    for name, placement in plan.placements.items():
        how = "copied" if placement.copied else "to each expert"
        key = (placement.row.source, placement.row.target, how)
        counts.setdefault(key, set()).add(placement.source if placement.copied else name)
    rows = [(*key, str(len(found))) for key, found in counts.items()]
    for kind, names in (
        ("ignored", [(name, "-") for _, name in plan.ignored]),
        ("new", [("-", name) for name in plan.new]),
    ):
        grouped: dict[tuple[str, str], int] = {}
        for pair in names:
            key = tuple(re.sub(r"(?<=[./_])\d+(?=[./]|$)", "*", text) for text in pair)
            grouped[key] = grouped.get(key, 0) + 1
        rows += [(*key, kind, str(count)) for key, count in grouped.items()]
    return table([("tensor", "parameter", "how", "count"), *rows])
