"""The one table from logical axes to mesh axes, and the mesh that a computation runs on.

A layer names the dimensions of its arrays and never a mesh: parameters by `nn.params.param`,
activations by `constrain`. Whoever compiles a step says which mesh it is for, with `using`; under
none, or one of a single device, nothing here does anything.
"""

from collections.abc import Iterator
import contextlib
import functools
import math

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from moemoe_jax.errors import UserError

LOGICAL_RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),  # the rows of a batch, and the tokens that they become
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "vocab": ("tensor",),
    "expert": ("expert",),
    "layers": (),
}


def spec_for(
    logical_axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> tuple[PartitionSpec, list[int]]:
    """Maps the named dimensions of one array to mesh axes.

    A mesh axis is used once per array, by the first dimension that asks for it. A dimension takes
    those of its axes that divide it; without any, it is whole on every device.

    Returns:
      The partition spec, and the dimensions that lack an axis that does not divide them.
    """
    axes, used, short = [], set(), []
    for dim, (name, size) in enumerate(zip(logical_axes, shape, strict=True)):
        wanted = [axis for axis in (LOGICAL_RULES[name] if name else ()) if axis not in used]
        taken = []
        for axis in wanted:
            if size % math.prod(mesh.shape[a] for a in (*taken, axis)) == 0:
                taken.append(axis)
        if taken != wanted:
            short.append(dim)
        used.update(taken)
        axes.append(tuple(taken) if len(taken) > 1 else taken[0] if taken else None)
    return PartitionSpec(*axes), short


def shards(logical_axis: str, mesh: Mesh | AbstractMesh) -> int:
    """In how many parts a logical axis is cut."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_RULES[logical_axis])


def expert_shards(num_experts: int, mesh: Mesh | AbstractMesh) -> int:
    """In how many parts the experts of a layer are dealt out.

    Raises:
      UserError: when they do not come out even.
    """
    parts = shards("expert", mesh)
    if num_experts % parts:
        raise UserError(
            f"mesh.expert {parts} does not divide the {num_experts} experts of a mixture layer; "
            "choose a divisor of model.moe.num_experts"
        )
    return parts


@contextlib.contextmanager
def using(mesh: Mesh | AbstractMesh) -> Iterator[None]:
    """Says which mesh the computation traced inside is for; works within a jitted function."""
    if mesh.size == 1:
        yield
        return
    abstract = mesh.abstract_mesh if isinstance(mesh, Mesh) else mesh
    with jax.sharding.use_abstract_mesh(abstract):
        yield


def mesh_in_use() -> AbstractMesh | None:
    """The mesh of `using`; None where there is none, or a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform_in_use() -> str:
    """What the computation that is traced will run on: "cpu", "gpu" or "tpu".

    The devices of the mesh in use say it, which may be of a machine that is not here. Without one,
    or with a mesh that was planned without devices, it is what this machine has.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Has an activation lie as the table says; the same numbers, wherever they are.

    Args:
      x: any array.
      names: the logical axis of each dimension; dimensions at the end may be left out. One without
        a name, or which its mesh axes do not divide, is whole on every device.
    """
    mesh = mesh_in_use()
    if mesh is None:
        return x
    spec, _ = spec_for((*names, *(None,) * (x.ndim - len(names))), x.shape, mesh)
    return jax.lax.with_sharding_constraint(x, spec)


def gathered(weights: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """A parameter as a layer uses it: whole along `fsdp`, its gradient in parts again.

    Left to itself, the compiler may as well fetch the activations of all devices to the part of the
    parameter that one holds.

    Args:
      weights: the parameter, in the dtype that it is to travel in.
      names: the logical axis of each of its dimensions.
    """
    return weights if mesh_in_use() is None else _gathered(weights, names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(weights, names):
    # Said to be in parts first: else what converts it to the dtype would come after the gather.
    parts = constrain(weights, *names)
    return constrain(parts, *(None if name == "embed" else name for name in names))


def _gathered_forward(weights, names):
    return _gathered(weights, names), None


def _gathered_backward(names, _, gradient):
    return (constrain(gradient, *names),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
