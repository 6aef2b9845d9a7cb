"""Root-mean-square normalisation: scale only, statistics in float32."""

from flax import nnx
import jax
import jax.numpy as jnp

from moemoe_jax.nn.params import param


class RMSNorm(nnx.Module):
    """y = scale * x / sqrt(mean(x^2) + epsilon), over the last dimension (T5's layer norm)."""

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-6,
        dtype: jnp.dtype | str = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.epsilon = epsilon
        self.dtype = jnp.dtype(dtype)
        self.scale = param(rngs, (features,), nnx.initializers.ones_init(), (None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises float [..., D]; computed in float32, returned in the compute dtype."""
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (x * inverse * self.scale[...]).astype(self.dtype)
