"""Randomness by explicit keys.

Modules hold no generator state: a stochastic call takes a key, and `None` in its place means
"deterministic". So a step's randomness is a pure function of (seed, step), which is what makes a
resumed run bit-identical and independent of the mesh.
"""

import jax
import jax.numpy as jnp


def split(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Splits `key` into `count` keys; no key stays no key, `count` times."""
    if key is None:
        return [None] * count
    return list(jax.random.split(key, count))


def fold(key: jax.Array | None, index: int | jax.Array) -> jax.Array | None:
    """Derives the `index`-th key from `key`; no key stays no key."""
    return None if key is None else jax.random.fold_in(key, index)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries of `x` with probability `rate` and scales the rest to keep the mean.

    Random bits are a large part of a training step on a CPU, so an entry gets one byte of them:
    the rate is rounded to a multiple of 1/256, and the scale is that of the rounded rate.

    Args:
      x: float [..., N].
      rate: probability of being dropped, in [0, 1).
      key: a PRNG key; without one, `x` comes back as it is.
    """
    if key is None or rate == 0.0:
        return x
    threshold = min(max(round(rate * 256), 1), 255)
    *batch, last = x.shape
    words = jax.random.bits(key, (*batch, -(-last // 4)), jnp.uint32)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*batch, -1)[..., :last]
    return jnp.where(octets >= threshold, x * (256 / (256 - threshold)), jnp.zeros_like(x))
