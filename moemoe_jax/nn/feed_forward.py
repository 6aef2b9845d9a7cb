"""T5's two feed-forward blocks, dense: the layer that a mixture of experts takes the place of.

relu: y = relu(x wi) wo.  gated-gelu: y = (gelu(x wi_0) * x wi_1) wo, gelu by its tanh form.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from moemoe_jax.nn.linear import Linear
from moemoe_jax.nn.params import normal
from moemoe_jax.nn.rng import dropout

ACTIVATIONS = ("relu", "gated-gelu")


class FeedForward(nnx.Module):
    """Maps [..., D] to [..., D] through d_ff hidden channels, without biases.

    Args:
      d_model: D.
      d_ff: hidden width.
      activation: one of `ACTIVATIONS`; it decides the names of the parameters.
      dropout: rate on the hidden channels.
      dtype: compute dtype.
      rngs: where the parameters' keys come from.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: str,
        dropout: float = 0.0,
        dtype: jnp.dtype | str = jnp.float32,
        *,
        rngs: nnx.Rngs,
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
        self.gated = activation == "gated-gelu"
        self.dropout = dropout
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            init = normal(d_model**-0.5)
            axes = ("embed", "mlp")
            setattr(self, name, Linear(d_model, d_ff, init=init, axes=axes, dtype=dtype, rngs=rngs))
        init = normal(d_ff**-0.5)
        self.wo = Linear(d_ff, d_model, init=init, axes=("mlp", "embed"), dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps float [..., D] to the compute dtype's [..., D]; `key` turns dropout on."""
        if self.gated:
            hidden = jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x)
        else:
            hidden = jax.nn.relu(self.wi(x))
        return self.wo(dropout(hidden, self.dropout, key))
