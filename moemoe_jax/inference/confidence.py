"""Confidence of a generated answer, from the log-probabilities of its tokens.

The paper states no confidence for its generative model, yet Recall@90P needs one, so the choice is
a name in a registry. All of them lie in [0, 1], and padding never counts.

Shapes: `...` any batch shape, L answer length.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def product(log_probs: jax.Array, valid: jax.Array) -> jax.Array:
    """Probability of the whole sequence, `exp(Σ log p)`: [..., L] -> [...]."""
    del valid  # padding is zero here, and adds nothing to the sum
    return jnp.exp(jnp.sum(log_probs, axis=-1))


def geometric_mean(log_probs: jax.Array, valid: jax.Array) -> jax.Array:
    """Probability per token, `exp(mean log p)`: does not punish long answers."""
    count = jnp.maximum(jnp.sum(valid, axis=-1), 1)
    return jnp.exp(jnp.sum(log_probs, axis=-1) / count)


def minimum(log_probs: jax.Array, valid: jax.Array) -> jax.Array:
    """Probability of the least certain token."""
    del valid  # padding is zero here, never below a real log-probability
    return jnp.exp(jnp.min(log_probs, axis=-1))


def first_token(log_probs: jax.Array, valid: jax.Array) -> jax.Array:
    """Probability of the first real token, where most values already part ways."""
    first = jnp.argmax(valid, axis=-1)
    return jnp.exp(jnp.take_along_axis(log_probs, first[..., None], axis=-1)[..., 0])


CONFIDENCES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "prod": product,
    "geomean": geometric_mean,
    "min": minimum,
    "first_token": first_token,
}


def sequence_confidence(log_probs: jax.Array, valid: jax.Array, method: str = "prod") -> jax.Array:
    """Turns per-token log-probabilities into one confidence per sequence.

    Args:
      log_probs: float [..., L], log-probability of each generated token; anything at padding.
      valid: bool [..., L], True for generated tokens, the final </s> included.
      method: a name in `CONFIDENCES`.

    Returns:
      float32 [...], in [0, 1]. A sequence without a valid token has confidence 0.

    Raises:
      ValueError: `method` is not in the registry.
    """
    if method not in CONFIDENCES:
        raise ValueError(
            f"confidence {method!r} is unknown: choose one of {', '.join(CONFIDENCES)}"
        )
    # Rounding can leave a log-probability a hair above zero; a probability above 1 helps nobody.
    log_probs = jnp.where(valid, jnp.minimum(log_probs.astype(jnp.float32), 0.0), 0.0)
    return jnp.where(jnp.any(valid, axis=-1), CONFIDENCES[method](log_probs, valid), 0.0)
