"""The places of a model that a tensor of a file can fill, by name, however the model stores them.

A slot is one layer's parameter, and one expert's where it is an expert's: a stack that is stored
stacked for a scan, and experts that are stored as one array, have the same slots as if they were
not. Names are paths with slashes:

    decoder_embedding/table
    context_encoder/stack/3/self_attention/query/kernel
    decoder/stack/5/feed_forward/wi/kernel/2                          expert 2 of layer 5

Shapes: R repeats of a scanned stack's pattern, E experts.
"""

from collections.abc import Iterator, Mapping
import dataclasses

from flax import nnx
import jax
import numpy as np

from moemoe_jax.nn.params import ExpertParam
from moemoe_jax.nn.stack import Stack

Path = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Slot:
    """A part of one array of a model.

    Attributes:
      leaf: path of the array in the model's state.
      index: what of its leading dimensions the slot is: (), [R], [E] or [R, E].
      shape: of the slot.
      dtype: of the array.
    """

    leaf: Path
    index: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype


def slots(model: nnx.Module) -> dict[str, Slot]:
    """All slots of a model, whose parameters may be ShapeDtypeStructs, in the order of its leaves.

    No two overlap, and together they are the whole model.
    """
    stacks = {path: module for path, module in nnx.iter_modules(model) if isinstance(module, Stack)}
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        (array,) = jax.tree.leaves(variable)
        for name, index in _layers(path, array.shape, stacks):
            for last, inner in _experts(variable, array.shape[len(index) :]):
                whole = (*index, *inner)
                found["/".join(map(str, (*name, *last)))] = Slot(
                    path, whole, tuple(array.shape[len(whole) :]), np.dtype(array.dtype)
                )
    return found


def _layers(
    path: Path, shape: tuple[int, ...], stacks: Mapping[Path, Stack]
) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """The names of an array's layers and their indices; itself where it is in no stack."""
    prefix = next((p for p in stacks if path[: len(p)] == p), None)
    if prefix is None:
        yield path, ()
        return
    _, position, *rest = path[len(prefix) :]  # "blocks", the block's number, its own path
    stack = stacks[prefix]
    if not stack.scan:
        yield (*prefix, position, *rest), ()
        return
    for repeat in range(shape[0]):
        layer = repeat * len(stack.blocks) + int(position)
        yield (*prefix, layer, *rest), (repeat,)


def _experts(
    variable: nnx.Variable, shape: tuple[int, ...]
) -> Iterator[tuple[Path, tuple[int, ...]]]:
    if not isinstance(variable, ExpertParam):
        yield (), ()
        return
    for expert in range(shape[0]):
        yield (expert,), (expert,)


def by_leaf(found: Mapping[str, Slot]) -> dict[Path, dict[str, Slot]]:
    """The slots of each array."""
    leaves: dict[Path, dict[str, Slot]] = {}
    for name, slot in found.items():
        leaves.setdefault(slot.leaf, {})[name] = slot
    return leaves
