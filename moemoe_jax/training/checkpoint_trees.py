"""Trees on their way to and from disk: named leaves, nested dicts, and what differs.

A tree of any kind (nnx.State, optax states, dicts) is stored as nested dicts with string keys, so
that a checkpoint does not depend on Python classes and any Orbax reader can open it.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax
from jax.sharding import SingleDeviceSharding
import numpy as np

from moemoe_jax.errors import UserError

SHOWN = 3  # differences that an error spells out


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise ValueError(f"a tree with a key of type {type(entry).__name__} cannot be saved")


def flatten(tree: Any) -> dict[str, Any]:
    """Names each leaf by its path (`params/encoder/0/kernel`), in the order of `jax.tree.leaves`.

    Raises:
      ValueError: when two leaves would have one name, or a leaf is a PRNG key.
    """
    named: dict[str, Any] = {}
    for path, node in jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
    ):
        name = "/".join(_key(entry) for entry in path)
        leaf = node
        if isinstance(node, nnx.Variable):
            # A box around one array, whose own level would only lengthen the name; or around
            # nothing, where an optimizer leaves a parameter to another rule.
            held = jax.tree.leaves(node)
            if not held:
                continue
            (leaf,) = held
        if name in named:
            raise ValueError(f"two leaves of the tree are named {name}")
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            raise ValueError(f"{name} is a random key: derive it from the seed and the step")
        named[name] = leaf
    return named


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Turns `{"a/b": x}` into `{"a": {"b": x}}`.

    Raises:
      ValueError: when a name is both a leaf and a branch.
    """
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *branches, last = name.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name}: {branch} is a leaf and a branch")
        if last in node:
            raise ValueError(f"{name} is a leaf and a branch")
        node[last] = leaf
    return tree


def storable(name: str, leaf: Any) -> jax.Array | np.ndarray:
    """Makes a number an array, and any array one of a dtype that JAX can read back.

    Raises:
      ValueError: for an integer that such a dtype does not hold.
    """
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    cast = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
    if np.issubdtype(array.dtype, np.integer) and (cast != array).any():
        raise ValueError(f"{name}: {array} does not fit {cast.dtype}")
    return cast


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of a leaf to restore; by default, on the first device."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        if jax.process_count() > 1:
            raise ValueError("with several processes every leaf to restore needs a sharding")
        sharding = SingleDeviceSharding(jax.devices()[0])
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return jax.ShapeDtypeStruct(np.shape(leaf), dtype, sharding=sharding)


def compare(
    wanted: Mapping[str, Any], stored: Mapping[str, Any], place: str, partial: bool = False
) -> None:
    """Refuses a checkpoint that does not fit, before a byte of it is loaded.

    Args:
      wanted: name -> something with shape and dtype, of the running program.
      stored: the same, of the checkpoint.
      place: where the checkpoint is, for the message.
      partial: the checkpoint may hold more than is wanted.

    Raises:
      UserError: naming the first few leaves that are missing, unexpected, or of another shape or
        dtype.
    """
    found = []
    for name, leaf in wanted.items():
        if name not in stored:
            found.append(f"{name} is missing")
            continue
        other = stored[name]
        if tuple(leaf.shape) != tuple(other.shape):
            found.append(f"{name} has shape {tuple(other.shape)}, not {tuple(leaf.shape)}")
        elif np.dtype(leaf.dtype) != np.dtype(other.dtype):
            found.append(f"{name} is {np.dtype(other.dtype)}, not {np.dtype(leaf.dtype)}")
    if not partial:
        found += [f"{name} is unexpected" for name in stored if name not in wanted]
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            f"checkpoint {place} does not fit the model: {'; '.join(found[:SHOWN])}{more}; "
            "use the config that it was trained with, or another work directory"
        )
