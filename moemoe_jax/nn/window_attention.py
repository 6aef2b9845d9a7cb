"""Cosine attention within shifted windows, with a position bias that a network computes (SwinV2).

Shapes: B batch, M and N height and width of a map, C channels, W windows, w side of a window,
H heads.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from moemoe_jax.nn import rng, windows
from moemoe_jax.nn.linear import Linear
from moemoe_jax.nn.params import constant, param

# A norm follows every sublayer, so the scale of a kernel only sets how fast its direction turns.
# The published 0.02 is right at widths of 768; a narrow model trained from scratch learns far
# faster with a scale that follows the width.
KERNEL_INIT = nnx.initializers.lecun_normal()
MAX_LOGIT_SCALE = math.log(100.0)  # of the cosines: a temperature of at least 0.01
BIAS_HIDDEN = 512  # hidden width of the position network
BIAS_PEAK = 16.0  # position biases lie in (0, 16)


def unit(x: jax.Array) -> jax.Array:
    """Scales the last dimension of float [..., C] to length one, in float32.

    A zero vector, which the key of a padded position is, stays zero and gets a zero gradient.
    """
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 1e-24, square, jnp.inf))


class PositionBias(nnx.Module):
    """A network from the offset between two positions to a bias of each head (SwinV2, eq 3)."""

    def __init__(self, heads: int, *, rngs: nnx.Rngs):
        # In float32 whatever the model's dtype: it sees a few hundred offsets, once a block.
        self.in_proj = Linear(2, BIAS_HIDDEN, init=KERNEL_INIT, use_bias=True, rngs=rngs)
        self.out_proj = Linear(BIAS_HIDDEN, heads, init=KERNEL_INIT, rngs=rngs)

    def __call__(self, window: int, pretrained_window: int) -> jax.Array:
        """Returns float32 [H, w·w, w·w] (query, key) for windows of side `window`."""
        offsets = jnp.asarray(windows.relative_coordinates(window, pretrained_window))
        table = self.out_proj(jax.nn.relu(self.in_proj(offsets)))
        return windows.pairwise(BIAS_PEAK * jax.nn.sigmoid(table))


class WindowAttention(nnx.Module):
    """Cosine attention within the windows of a map (SwinV2, eq 2).

    Args:
      width: channels C, a multiple of `heads`.
      heads: H.
      window: side w of a window; maps that it does not divide are padded.
      shift: how many rows and columns in the windows start, 0 <= shift < window.
      pretrained_window: side of the windows that the weights were trained with, 0 = `window`.
      qkv_bias: whether queries and values have a bias; keys have none.
      dropout: on attention weights and on the output.
      dtype: the compute dtype.
      rngs: where the parameters' keys come from.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        shift: int = 0,
        pretrained_window: int = 0,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        dtype: jnp.dtype | str = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads, self.window, self.shift = heads, window, shift
        self.pretrained_window = pretrained_window
        self.dropout, self.dtype = dropout, jnp.dtype(dtype)
        kind = {"init": KERNEL_INIT, "dtype": dtype, "rngs": rngs}
        qkv = {"axes": ("embed", "heads"), **kind}
        self.query = Linear(width, width, use_bias=qkv_bias, **qkv)
        self.key = Linear(width, width, **qkv)
        self.value = Linear(width, width, use_bias=qkv_bias, **qkv)
        self.out = Linear(width, width, axes=("heads", "embed"), use_bias=True, **kind)
        log_ten = constant(math.log(10.0))
        self.logit_scale = param(rngs, (heads, 1, 1), log_ten, (None, None, None))
        self.bias_mlp = PositionBias(heads, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """Maps [B, M, N, C] to [B, M, N, C]; `key` is for dropout."""
        height, width = x.shape[1:3]
        x = windows.pad_to_multiple(x, self.window)
        padded = x.shape[1:3]
        allowed = None
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
            allowed = windows.shift_mask(*padded, self.window, self.shift)
        x = windows.join(self._attend(windows.partition(x, self.window), allowed, key), *padded)
        if self.shift:
            x = jnp.roll(x, (self.shift, self.shift), axis=(1, 2))
        return x[:, :height, :width]

    def _attend(self, x: jax.Array, allowed: np.ndarray | None, key: jax.Array | None) -> jax.Array:
        """Attention of [B, W, w·w, C]; `allowed` is bool [W, w·w, w·w], or None for everyone."""
        weights_key, out_key = rng.split(key, 2)
        split = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        scale = jnp.exp(jnp.minimum(self.logit_scale[...], MAX_LOGIT_SCALE)).reshape(-1, 1)
        query = (unit(self.query(x).reshape(split)) * scale).astype(self.dtype)
        keys = unit(self.key(x).reshape(split)).astype(self.dtype)
        scores = jnp.einsum("bwqhc,bwkhc->bwhqk", query, keys, preferred_element_type=jnp.float32)
        scores += self.bias_mlp(self.window, self.pretrained_window)
        if allowed is not None:
            scores = jnp.where(allowed[None, :, None], scores, -jnp.inf)
        weights = rng.dropout(jax.nn.softmax(scores), self.dropout, weights_key)
        mixed = jnp.einsum(
            "bwhqk,bwkhc->bwqhc", weights.astype(self.dtype), self.value(x).reshape(split)
        )
        return rng.dropout(self.out(mixed.reshape(x.shape)), self.dropout, out_key)
