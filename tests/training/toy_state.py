"""A small model and the state of its training, to be saved."""

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from moemoe_jax.nn.params import ExpertParam, param

normal = nnx.initializers.normal(1.0)


class Toy(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([param(rngs, (4, 8), normal, ("embed", "mlp"))])
        self.experts = param(rngs, (2, 4, 8), normal, ("expert", "embed", "mlp"), kind=ExpertParam)
        self.half = param(rngs, (4,), normal, (None,), dtype=jnp.bfloat16)


def train_state(seed):
    params = nnx.state(Toy(nnx.Rngs(seed)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    moments = optimizer.init(params)
    _, moments = optimizer.update(params, moments, params)
    return {"params": params, "optimizer": moments, "step": jnp.int32(seed)}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
