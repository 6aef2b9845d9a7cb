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
    the rate is rounded to a multiple of 1/256, of one at least, and the scale is that of the
    rounded rate.

    Args:
      x: float [..., N].
      rate: probability of being dropped, in [0, 1).
      key: a PRNG key; without one, `x` comes back as it is.
    """
    if key is None or rate == 0.0:
        return x
    return _drop(x, rate, jax.random.bits(key, (*x.shape[:-1], _words(x)), jnp.uint32))


def row_dropout(x: jax.Array, rate: float, key: jax.Array | None, rows: jax.Array) -> jax.Array:
    """`dropout` whose mask of a row depends on the row's number alone, not on where it lies.

    Args:
      x: float [..., N].
      rate: probability of being dropped, in [0, 1).
      key: a PRNG key; without one, `x` comes back as it is.
      rows: int [...], a number of its own for every row.
    """
    if key is None or rate == 0.0:
        return x
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows.ravel())
    words = jax.vmap(lambda key: jax.random.bits(key, (_words(x),), jnp.uint32))(keys)
    return _drop(x, rate, words.reshape(*rows.shape, -1))


def _words(x: jax.Array) -> int:
    """How many words of 32 bits give each entry of a row a byte."""
    return -(-x.shape[-1] // 4)


def _drop(x: jax.Array, rate: float, words: jax.Array) -> jax.Array:
    threshold = min(max(round(rate * 256), 1), 255)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8)
    octets = octets.reshape(*words.shape[:-1], -1)[..., : x.shape[-1]]
    return jnp.where(octets >= threshold, x * (256 / (256 - threshold)), jnp.zeros_like(x))
