"""One expert after the other, each on about as many rows as its queue has.

Where queues are very uneven, a batched product is mostly of empty slots: all experts get as many as
the longest queue. Answers are an example, as their first tokens are alike and want the same
experts. On a CPU, products one by one are as fast as a batched one, so that there each expert can
have a size of its own, the smallest of a few that holds its queue.

Shapes: T tokens, E experts, k experts per token, D width.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from moemoe_jax.nn.lending import align

STEP = 1.5  # from one size to the next
LEAST = 0.5  # multiples of the mean queue, below which there are no further sizes


def sizes_for(tokens: int, top_k: int, num_experts: int) -> tuple[int, ...]:
    """Growing numbers of rows, from 0 to all tokens."""
    sizes, least = [tokens], LEAST * top_k * tokens / num_experts
    while least < (size := align(sizes[-1] / STEP)) < sizes[-1]:
        sizes.append(size)
    return (0, *sorted(sizes))


def in_turn(
    experts: Callable,
    inputs: jax.Array,
    numbers: jax.Array,
    load: jax.Array,
    sizes: tuple[int, ...],
) -> jax.Array:
    """Runs each expert on its rows.

    Args:
      experts: as in `dispatch.Experts`.
      inputs: float [E, T, D], the queue of each expert in front.
      numbers: int32 [E, T], of the rows.
      load: int32 [E], how many rows each has.
      sizes: from `sizes_for`.

    Returns:
      [E, T, D], zeros beyond the size that was chosen.
    """

    def one(_, expert):
        rows, numbers, load, index = expert
        branches = [functools.partial(run, size, index) for size in sizes]
        chosen = jnp.sum(load > jnp.array(sizes[:-1], jnp.int32))
        return None, jax.lax.switch(chosen, branches, rows, numbers)

    def run(size, index, rows, numbers):
        def dot(rows, kernel):
            return rows @ jax.lax.dynamic_index_in_dim(kernel, index, keepdims=False)

        if not size:
            return jnp.zeros_like(rows)
        outputs = experts(rows[:size], numbers[:size], dot)
        return jnp.pad(outputs, ((0, rows.shape[0] - size), (0, 0)))

    each = (inputs, numbers, load, jnp.arange(load.shape[0]))
    # The branches would keep room for what each of them needs on the way back.
    return jax.lax.scan(jax.checkpoint(one), None, each)[1]
