"""Upcycling: a trained dense feed-forward block becomes the starting point of every expert.

With weights that sum to one and nothing dropped, the mixture then equals the dense block exactly:
sum_i w_i f(x) = f(x). Only the router is new.

Shapes: E experts.
"""

from typing import Any

import jax
import jax.numpy as jnp

Arrays = Any  # a nested dictionary of arrays


def upcycle_feed_forward(
    dense_params: Arrays, num_experts: int, noise: float = 0.0, key: jax.Array | None = None
) -> Arrays:
    """Stacks `num_experts` copies of a block's parameters along a new leading axis.

    While the copies are identical and the weights sum to one, the task loss gives the router no
    gradient; a little noise on the copies breaks that tie.

    Args:
      dense_params: nested dictionary of float arrays [...], as in `FeedForward`.
      num_experts: E.
      noise: standard deviation of what is added to each copy, relative to the array's own.
      key: of the noise.

    Returns:
      The same nesting with arrays [E, ...] of the same dtypes, as in `MoEFeedForward`.

    Raises:
      ValueError: noise without a key, or negative, or fewer than one expert.
    """
    if num_experts < 1 or noise < 0:
        raise ValueError(
            f"num_experts {num_experts} must be at least 1 and noise {noise} at least 0"
        )
    if noise and key is None:
        raise ValueError(f"noise {noise} needs a key: pass key=jax.random.key(seed)")

    def stack(leaf: jax.Array, leaf_key: jax.Array | None) -> jax.Array:
        copies = jnp.repeat(jnp.asarray(leaf)[None], num_experts, axis=0)
        if leaf_key is None:
            return copies
        scale = noise * jnp.std(copies.astype(jnp.float32))
        return copies + (scale * jax.random.normal(leaf_key, copies.shape)).astype(copies.dtype)

    leaves, tree = jax.tree.flatten(dense_params)
    keys = jax.random.split(key, len(leaves)) if noise else [None] * len(leaves)
    return jax.tree.unflatten(tree, map(stack, leaves, keys))
