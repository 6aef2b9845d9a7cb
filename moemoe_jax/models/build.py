"""Making a model's parameters where they belong on the mesh, and knowing their shapes without."""

from collections.abc import Collection

from flax import nnx
import jax
from jax.sharding import Mesh

from moemoe_jax.models.config import MoEMoEConfig
from moemoe_jax.models.moemoe import MoEMoE
from moemoe_jax.nn.params import Keys, PlacedKeys
from moemoe_jax.parallel.sharding import param_shardings

Path = tuple[str | int, ...]


def abstract_model(config: MoEMoEConfig) -> MoEMoE:
    """The model with shapes in place of arrays: nothing is allocated."""
    return nnx.eval_shape(lambda: MoEMoE(config, rngs=Keys(jax.random.key(0))))


def create_model(config: MoEMoEConfig, seed: int, mesh: Mesh) -> MoEMoE:
    """Initialises the model, each parameter on the devices that the axis table gives it.

    Args:
      config: what the model is made of.
      seed: of the random values; the same on every mesh.
      mesh: where they go.
    """
    graph, made = nnx.split(MoEMoE(config, rngs=PlacedKeys(jax.random.key(seed), mesh)))
    # Layers that are stacked for a scan were put together wherever the compiler liked.
    settle = jax.jit(
        lambda state: state, out_shardings=param_shardings(made, mesh), donate_argnums=0
    )
    return nnx.merge(graph, settle(made))


def create_parameters(
    config: MoEMoEConfig, seed: int, mesh: Mesh, paths: Collection[Path]
) -> dict[Path, jax.Array]:
    """Initialises some of the parameters, with the values that `create_model` gives them.

    Args:
      config: what the model is made of.
      seed: of the random values.
      mesh: where they go.
      paths: of the parameters, as `nnx.to_flat_state` has them.
    """
    named = {"/".join(map(str, path)): path for path in paths}

    def pick(state: nnx.State) -> dict[str, jax.Array]:
        flat = dict(nnx.to_flat_state(state))
        return {name: jax.tree.leaves(flat[path])[0] for name, path in named.items()}

    def make(key: jax.Array) -> dict[str, jax.Array]:
        return pick(nnx.state(MoEMoE(config, rngs=Keys(key))))

    shapes = nnx.state(abstract_model(config))
    # What is not asked for is not computed: the compiler leaves it out.
    places = pick(param_shardings(shapes, mesh))
    made = jax.jit(make, out_shardings=places)(jax.random.key(seed)) if named else {}
    return {path: made[name] for name, path in named.items()}
