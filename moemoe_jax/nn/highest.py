"""The place of the highest score."""

import jax
import jax.numpy as jnp


def highest(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first place of the highest of scores [..., V], int32 [...], and that score, [...].

    As `jnp.argmax` and `jnp.max`, but for NaN, with which the place is the last. A reduction of
    pairs of value and place, as the former is, is not vectorised on a CPU: over a vocabulary it
    takes ten times as long as a reduction for the value and one for the place.
    """
    best = jnp.max(scores, axis=-1, keepdims=True)
    places = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    place = jnp.min(jnp.where(scores == best, places, scores.shape[-1] - 1), axis=-1)
    return place, best[..., 0]
