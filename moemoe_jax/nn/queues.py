"""Queues: where each token stands at the experts that it chose, and how long that may be.

A queue is filled token by token, so that a later token never evicts an earlier one and a decoder
stays causal. With a capacity factor, what does not fit is dropped, counted, and contributes zero.

Shapes: T tokens, E experts, k experts per token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moemoe_jax.nn.lending import align

TIERS = (1.25, 2.5)  # capacities below "everything", in multiples of an even load
SMALL = 64  # up to so many tokens, choosing a tier costs more than it saves


class Queue(NamedTuple):
    """Where each choice stands in the queue of its expert.

    Attributes:
      expert: int32 [T, k], the choices.
      position: int32 [T, k], how many earlier tokens chose the same expert.
      kept: bool [T, k], False for padding and for what is past the capacity.
      load: int32 [E], kept choices per expert.
      longest: int32 [], the largest load.
      first: int32 [], the number of the first token. On many devices, `longest` and `first` are
        with regard to the tokens of all.
    """

    expert: jax.Array
    position: jax.Array
    kept: jax.Array
    load: jax.Array
    longest: jax.Array
    first: jax.Array

    def limited(self, limit: jax.Array, before: jax.Array | int = 0) -> "Queue":
        """Keeps the first `limit` of each queue, `before` of which stand elsewhere: int32 [E]."""
        start = jnp.broadcast_to(before, self.load.shape)[self.expert]
        kept = self.kept & (start + self.position < limit)
        load = jnp.clip(limit - before, 0, self.load)
        return self._replace(kept=kept, load=load, longest=jnp.max(load))


def capacity(factor: float, tokens: int | np.ndarray, top_k: int, num_experts: int) -> np.ndarray:
    """Slots per expert for `tokens` tokens: factor times the even load, rounded up."""
    slots = np.ceil(factor * top_k * np.asarray(tokens) / num_experts).astype(np.int32)
    return np.minimum(slots, tokens)


def capacity_tiers(tokens: int, top_k: int, num_experts: int) -> tuple[int, ...]:
    """Growing capacities, the last of which (`tokens`) holds any routing at all."""
    if tokens <= SMALL:
        return (tokens,)
    sizes = (int(capacity(factor, tokens, top_k, num_experts)) for factor in TIERS)
    aligned = {align(size) for size in sizes}
    return (*sorted(size for size in aligned if size < tokens), tokens)


def enqueue(
    experts: jax.Array, valid: jax.Array, num_experts: int, capacity_factor: float | None = None
) -> Queue:
    """Lines the choices up, token by token; padding takes no place.

    The capacity follows the number of *valid* tokens, so that padding a batch changes no drop.

    Args:
      experts: int [T, k], distinct per token.
      valid: bool [T].
      num_experts: E.
      capacity_factor: slots per expert over the even load; None keeps everything.
    """
    tokens, top_k = experts.shape
    chosen = jnp.sum(jax.nn.one_hot(experts, num_experts, dtype=jnp.int32), axis=1)
    chosen = chosen * valid[:, None]
    position = jnp.take_along_axis(jnp.cumsum(chosen, axis=0) - chosen, experts, axis=1)
    load, kept = jnp.sum(chosen, axis=0), jnp.broadcast_to(valid[:, None], experts.shape)
    queue = Queue(experts, position, kept, load, jnp.max(load), jnp.int32(0))
    if capacity_factor is None:
        return queue
    return queue.limited(capacity_of(jnp.sum(valid), capacity_factor, tokens, top_k, num_experts))


def capacity_of(
    count: jax.Array, factor: float, tokens: int, top_k: int, num_experts: int
) -> jax.Array:
    """`capacity` for an int32 [] number of tokens that is known at run time, at most `tokens`."""
    limits = capacity(factor, np.arange(tokens + 1), top_k, num_experts)
    return jnp.asarray(limits)[count]
