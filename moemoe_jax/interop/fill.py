"""A model's arrays filled from files: one tensor in memory at a time beyond the arrays themselves.

Shapes: N the leading axes of an array that a slot is an index of.
"""

from collections.abc import Callable, Mapping
import zlib

from flax import nnx
import jax
from jax.sharding import Sharding
import numpy as np

from moemoe_jax.interop.plan import Placement, Plan
from moemoe_jax.interop.slots import Path, Slot, by_leaf

Index = tuple[slice, ...]
Initialise = Callable[[list[Path]], Mapping[Path, jax.Array]]


def fill(
    state: nnx.State,
    shardings: nnx.State,
    slots: Mapping[str, Slot],
    plan: Plan,
    initialise: Initialise,
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> nnx.State:
    """Makes a model's parameters.

    Args:
      state: their shapes.
      shardings: their places, a tree like `state`.
      slots: of the model.
      plan: where each slot's values come from.
      initialise: makes the arrays of these paths that have new slots, on their places.
      noise: on the experts that are copies of a dense block, relative to its standard deviation.
      seed: of that noise.

    Returns:
      A state like `state` with arrays on their places.
    """
    leaves = by_leaf(slots)
    new = set(plan.new)
    fresh = initialise([leaf for leaf, inside in leaves.items() if new & inside.keys()])
    places = {path: _only(v) for path, v in nnx.to_flat_state(shardings)}

    def value(path: Path, variable: nnx.Variable) -> nnx.Variable:
        inside = leaves[path]
        if inside.keys() <= new:
            return variable.replace(fresh[path])
        parts = {
            name: (slot.index, plan.placements[name])
            for name, slot in inside.items()
            if name not in new
        }
        shape = _only(variable).shape
        array = _array(shape, places[path], parts, fresh.get(path), noise, seed)
        return variable.replace(array)

    return nnx.map_state(value, state)


def _only(tree):
    (leaf,) = jax.tree.leaves(tree)
    return leaf


def _array(
    shape: tuple[int, ...],
    sharding: Sharding,
    parts: Mapping[str, tuple[tuple[int, ...], Placement]],
    start: jax.Array | None,
    noise: float,
    seed: int,
) -> jax.Array:
    """One array from its slots' tensors, each read once, whatever the number of devices."""
    buffers: dict[tuple, tuple[Index, np.ndarray]] = {}
    for index in sharding.addressable_devices_indices_map(shape).values():
        key = _key(index, shape)
        if key not in buffers:
            sides = [stop - first for first, stop in key]
            buffers[key] = index, np.empty(sides, np.float32)
    if start is not None:
        for shard in start.addressable_shards:
            np.copyto(buffers[_key(shard.index, shape)][1], shard.data)
    for name, (index, placement) in parts.items():
        tensor = placement.read()
        if noise and not placement.copied:
            tensor = with_noise(tensor, name, noise, seed)
        for key, (_, buffer) in buffers.items():
            inside = [i - first for i, (first, _) in zip(index, key, strict=False)]
            if all(0 <= i < side for i, side in zip(inside, buffer.shape, strict=False)):
                cut = tuple(slice(*bounds) for bounds in key[len(index) :])
                buffer[tuple(inside)] = tensor[cut]
    return jax.make_array_from_callback(
        shape, sharding, lambda index: buffers[_key(index, shape)][1], dtype=np.float32
    )


def _key(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Slices as pairs of numbers, which can be looked up."""
    return tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))


def with_noise(tensor: np.ndarray, name: str, noise: float, seed: int) -> np.ndarray:
    """An expert's copy of a dense block's tensor, moved a little.

    While the copies are equal and their weights sum to one, the task gives a router no gradient.
    The noise follows from the expert's name and the seed alone, so it is the same on every mesh.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    moved = rng.standard_normal(tensor.shape, np.float32) * np.float32(noise * tensor.std())
    return tensor + moved
