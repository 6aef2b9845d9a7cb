"""Where every array lives: one table from logical axes to mesh axes, and what follows from it.

A parameter carries the logical name of each of its dimensions (`nn.params.param`); this module
reads the names and never the path of a parameter. Optimizer state lies where its parameter lies.
"""

from collections.abc import Iterator
import functools
import math
from typing import Any

from flax import nnx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax

LOGICAL_RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp", "expert"),  # the global batch is split over all devices
    "embed": "fsdp",
    "mlp": None,
    "heads": None,
    "vocab": None,
    "expert": "expert",
    "layers": None,
}


def spec_for(
    logical_axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh
) -> tuple[PartitionSpec, list[int]]:
    """Maps the named dimensions of one array to mesh axes.

    A mesh axis is used once per array, by the first dimension that asks for it. A dimension that
    its mesh axis does not divide stays whole on every device.

    Returns:
      The partition spec, and the dimensions that stay whole because they are not divisible.
    """
    axes, used, whole = [], set(), []
    for dim, (name, size) in enumerate(zip(logical_axes, shape, strict=True)):
        axis = None if name is None else LOGICAL_RULES[name]
        if axis is None or axis in used:
            axes.append(None)
        elif size % mesh.shape[axis]:
            axes.append(None)
            whole.append(dim)
        else:
            axes.append(axis)
            used.add(axis)
    return PartitionSpec(*axes), whole


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def path_name(path: tuple[Any, ...]) -> str:
    """Joins the keys of a tree path with slashes: `encoder/layers/0/kernel`."""
    parts = [getattr(k, "key", getattr(k, "idx", getattr(k, "name", None))) for k in path]
    return "/".join(str(part) for part in parts)


def _variables(state: Any) -> Iterator[tuple[str, nnx.Variable]]:
    """Yields the path and the variable of each leaf; anything else is an error."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_variable):
        name = path_name(path)
        if not _is_variable(leaf) or "logical_axes" not in leaf.get_metadata():
            raise ValueError(f"{name} has no logical axes: make it with moemoe_jax.nn.params.param")
        yield name, leaf


def _spec(variable: nnx.Variable, mesh: Mesh) -> tuple[PartitionSpec, list[int]]:
    shape = jax.tree.leaves(variable)[0].shape
    return spec_for(variable.get_metadata()["logical_axes"], shape, mesh)


def param_shardings(state: Any, mesh: Mesh) -> Any:
    """Returns a tree like `state` with a NamedSharding in place of each array.

    Args:
      state: an nnx.State (or a tree of such) of variables with arrays or ShapeDtypeStructs.
      mesh: from `make_mesh`.

    Raises:
      ValueError: for a leaf without `logical_axes`.
    """
    shardings = [NamedSharding(mesh, _spec(variable, mesh)[0]) for _, variable in _variables(state)]
    return jax.tree.unflatten(jax.tree.structure(state), shardings)


def indivisible(state: Any, mesh: Mesh) -> list[str]:
    """Lists, one line each, the dimensions that stay whole since their mesh axis does not fit."""
    lines = []
    for name, variable in _variables(state):
        shape, axes = jax.tree.leaves(variable)[0].shape, variable.get_metadata()["logical_axes"]
        for dim in _spec(variable, mesh)[1]:
            rule = LOGICAL_RULES[axes[dim]]
            lines.append(
                f"{name}: dimension {dim} ({axes[dim]}, {shape[dim]}) is replicated: "
                f"{rule}={mesh.shape[rule]} does not divide it"
            )
    return lines


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: step counters, metrics, keys."""
    return NamedSharding(mesh, PartitionSpec())


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Gives the optimizer state the sharding of the parameter that each part belongs to.

    An array of the state belongs to a parameter if its path ends in the parameter's (Adam's and
    Muon's moments, a trace) and the shapes are equal. All else is replicated: counters, and the
    row and column statistics of Adafactor, which are small.

    Args:
      optimizer: whose `init(params)` makes the state; only its shapes are computed here.
      params: the trainable parameters (arrays or ShapeDtypeStructs).
      shardings: `param_shardings(params, mesh)`.
      mesh: from `make_mesh`.

    Returns:
      A tree like `optimizer.init(params)` with a NamedSharding for each array.
    """
    named = jax.tree_util.tree_leaves_with_path(params)
    places = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(named, jax.tree.leaves(shardings), strict=True)
    }

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = places.get(path[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose leading dimension is the global batch."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL_RULES["batch"]))


def _rows_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Splits `rows` rows over the mesh, or replicates them where they do not divide."""
    split = batch_sharding(mesh)
    shards = mesh.size // split.shard_shape((mesh.size,))[0]
    return replicated(mesh) if rows % shards else split


@functools.lru_cache(maxsize=64)
def local_rows(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """The rows of a global batch of `rows` that the devices of this process hold, growing.

    They follow from the mesh: they need not be a slice, two processes may hold the same ones, and
    each holds all of a batch that does not divide.
    """
    places = _rows_sharding(mesh, rows).addressable_devices_indices_map((rows,)).values()
    return tuple(sorted({row for (index,) in places for row in range(*index.indices(rows))}))


def place_batch(batch: Any, mesh: Mesh, products: int | None = None) -> Any:
    """Turns a tree of numpy arrays into global arrays, split along their leading dimension.

    The global batch is the same whatever the number of processes, and so is the loss. An array
    whose leading dimension the number of shards does not divide (a small table of distinct
    questions, a scalar) is replicated.

    Args:
      batch: what every process holds whole, and where `products` is given, for all but
        `question_ids`, of its own rows alone.
      mesh: from `make_mesh`.
      products: P, the rows of the global batch; a process passes its `local_rows(mesh, P)`. None:
        each passes all of them.
    """
    held = None if products is None else np.asarray(local_rows(mesh, products))

    def place(path: tuple[Any, ...], array: Any) -> jax.Array:
        array = np.asarray(array)
        if held is None or path_name(path) == "question_ids":
            sharding = _rows_sharding(mesh, array.shape[0]) if array.ndim else replicated(mesh)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        def rows(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(products)
            first = np.searchsorted(held, start)
            return array[first : first + stop - start]

        shape = (products, *array.shape[1:])
        return jax.make_array_from_callback(shape, _rows_sharding(mesh, products), rows)

    return jax.tree_util.tree_map_with_path(place, batch)


def describe(state: Any, mesh: Mesh) -> str:
    """Tabulates each parameter: name, shape, partition spec and bytes on one device."""
    rows = [("parameter", "shape", "spec", "bytes/device")]
    total = 0
    for name, variable in _variables(state):
        leaf = jax.tree.leaves(variable)[0]
        spec, _ = _spec(variable, mesh)
        local = NamedSharding(mesh, spec).shard_shape(leaf.shape)
        size = math.prod(local) * np.dtype(leaf.dtype).itemsize
        total += size
        rows.append((name, str(tuple(leaf.shape)), _spec_text(spec), f"{size:,}"))
    rows.append(("total", "", "", f"{total:,}"))
    return table(rows)


def _spec_text(spec: PartitionSpec) -> str:
    return "(" + ", ".join("-" if axis is None else str(axis) for axis in spec) + ")"


def table(rows: list[tuple[str, ...]]) -> str:
    """Lays rows out in columns: the first row is the header, the last column is right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1].rjust(widths[-1])]))
    return "\n".join(lines)
