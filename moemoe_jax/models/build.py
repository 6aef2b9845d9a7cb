"""Making a model's parameters where they belong on the mesh, and knowing their shapes without."""

from flax import nnx
import jax
from jax.sharding import Mesh

from moemoe_jax.models.config import MoEMoEConfig
from moemoe_jax.models.moemoe import MoEMoE
from moemoe_jax.parallel.sharding import param_shardings


def abstract_model(config: MoEMoEConfig) -> MoEMoE:
    """The model with shapes in place of arrays: nothing is allocated."""
    return nnx.eval_shape(lambda: MoEMoE(config, rngs=nnx.Rngs(0)))


def create_model(config: MoEMoEConfig, seed: int, mesh: Mesh) -> MoEMoE:
    """Initialises the model, each parameter on the devices that the axis table gives it.

    Args:
      config: what the model is made of.
      seed: of the random values; the same on every mesh.
      mesh: where they go.
    """
    graph, shapes = nnx.split(abstract_model(config))

    def make(key: jax.Array) -> nnx.State:
        return nnx.state(MoEMoE(config, rngs=nnx.Rngs(params=key)))

    made = jax.jit(make, out_shardings=param_shardings(shapes, mesh))(jax.random.key(seed))
    return nnx.merge(graph, made)
