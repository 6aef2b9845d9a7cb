"""Where parameters, optimizer state and batches lie: what follows from the table in `axes`.

A parameter carries the logical name of each of its dimensions (`nn.params.param`); this module
reads the names and never the path of a parameter. Optimizer state lies where its parameter lies.
"""

from collections.abc import Iterator
import functools
import math
from typing import Any

from flax import nnx
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax

from moemoe_jax.parallel.axes import LOGICAL_RULES, shards, spec_for
from moemoe_jax.parallel.folding import fold

# What a batch has once for all of its products: a table of the distinct questions.
SHARED = frozenset({"question_ids", "encoded_questions"})


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


def _spec(variable: nnx.Variable, mesh: Mesh | AbstractMesh) -> tuple[PartitionSpec, list[int]]:
    shape = jax.tree.leaves(variable)[0].shape
    return spec_for(variable.get_metadata()["logical_axes"], shape, mesh)


def param_shardings(state: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Returns a tree like `state` with a NamedSharding in place of each array.

    Args:
      state: an nnx.State (or a tree of such) of variables with arrays or ShapeDtypeStructs.
      mesh: from `make_mesh`.

    Raises:
      ValueError: for a leaf without `logical_axes`.
    """
    shardings = [NamedSharding(mesh, _spec(variable, mesh)[0]) for _, variable in _variables(state)]
    return jax.tree.unflatten(jax.tree.structure(state), shardings)


def indivisible(state: Any, mesh: Mesh | AbstractMesh) -> list[str]:
    """Lists the dimensions that stay whole since their mesh axis does not fit; `fold`ed."""
    rows = []
    for name, variable in _variables(state):
        shape, axes = jax.tree.leaves(variable)[0].shape, variable.get_metadata()["logical_axes"]
        for dim in _spec(variable, mesh)[1]:
            (rule,) = LOGICAL_RULES[axes[dim]]
            why = (
                f"dimension {dim} ({axes[dim]}, {shape[dim]}) is replicated: "
                f"{rule}={mesh.shape[rule]} does not divide it"
            )
            rows.append((name, why))
    return [f"{name}: {why}" for name, _, why in fold(rows)]


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of what every device holds whole: step counters, metrics, keys."""
    return NamedSharding(mesh, PartitionSpec())


def optimizer_shardings(
    optimizer: optax.GradientTransformation,
    params: Any,
    shardings: Any,
    mesh: Mesh | AbstractMesh,
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
    """The sharding of an array whose leading dimension is the global batch.

    Devices along `tensor` hold the same rows.
    """
    return NamedSharding(mesh, PartitionSpec(LOGICAL_RULES["batch"]))


def rows_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Splits `rows` rows over the mesh, or replicates them where they do not divide."""
    return replicated(mesh) if rows % shards("batch", mesh) else batch_sharding(mesh)


@functools.lru_cache(maxsize=64)
def process_rows(mesh: Mesh, rows: int) -> dict[int, tuple[int, ...]]:
    """The rows of a global batch of `rows` that the devices of each process hold, growing.

    They follow from the mesh: they need not be a slice, two processes may hold the same ones, and
    each holds all of a batch that does not divide.
    """
    held: dict[int, set[int]] = {}
    for device, (index,) in rows_sharding(mesh, rows).devices_indices_map((rows,)).items():
        held.setdefault(device.process_index, set()).update(range(*index.indices(rows)))
    return {process: tuple(sorted(held[process])) for process in sorted(held)}


def local_rows(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """The rows of a global batch of `rows` that this process holds; see `process_rows`."""
    return process_rows(mesh, rows)[jax.process_index()]


def local_part(array: jax.Array) -> np.ndarray:
    """What this process holds of an array that is split along its rows: its `local_rows`."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def place_batch(batch: Any, mesh: Mesh, products: int | None = None) -> Any:
    """Turns a tree of numpy arrays into global arrays, split along their leading dimension.

    The global batch is the same whatever the number of processes, and so is the loss. An array
    whose leading dimension the number of shards does not divide (a small table of distinct
    questions, a scalar) is replicated.

    Args:
      batch: what every process holds whole, and where `products` is given, for all but what is
        `SHARED` by the products, of its own rows alone.
      mesh: from `make_mesh`.
      products: P, the rows of the global batch; a process passes its `local_rows(mesh, P)`. None:
        each passes all of them.
    """
    held = None if products is None else np.asarray(local_rows(mesh, products))

    def place(path: tuple[Any, ...], array: Any) -> jax.Array:
        array = np.asarray(array)
        if held is None or path[0].key in SHARED:
            sharding = rows_sharding(mesh, array.shape[0]) if array.ndim else replicated(mesh)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        def rows(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(products)
            first = np.searchsorted(held, start)
            return array[first : first + stop - start]

        shape = (products, *array.shape[1:])
        return jax.make_array_from_callback(shape, rows_sharding(mesh, products), rows)

    return jax.tree_util.tree_map_with_path(place, batch)


def bytes_on_device(tree: Any) -> int:
    """Bytes that one device holds of a tree of ShapeDtypeStructs (or arrays) with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def describe(state: Any, mesh: Mesh | AbstractMesh) -> str:
    """Tabulates each parameter: name, shape, partition spec and its size on one device.

    Those of equal layers share a line (see `fold`), with their number before the size of each.
    """
    leaves, total = [], 0
    for name, variable in _variables(state):
        leaf = jax.tree.leaves(variable)[0]
        spec, _ = _spec(variable, mesh)
        placed = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))
        size = bytes_on_device(placed)
        total += size
        leaves.append((name, (str(tuple(leaf.shape)), _spec_text(spec), size_text(size))))
    rows = [("parameter", "shape", "spec", "on a device")]
    for name, count, (shape, spec, size) in fold(leaves):
        rows.append((name, shape, spec, size if count == 1 else f"{count} x {size}"))
    return table([*rows, ("total", "", "", size_text(total))])


def size_text(size: int) -> str:
    """A number of bytes for the eye: "612 B", and from a mebibyte on "1,468.0 MiB"."""
    return f"{size:,} B" if size < 2**20 else f"{size / 2**20:,.1f} MiB"


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
