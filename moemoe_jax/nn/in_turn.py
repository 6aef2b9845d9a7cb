"""One expert after the other, each on about as many rows as its queue has.

Where queues are very uneven, a batched product is mostly of empty slots: all experts get as many as
the longest queue. Answers are an example, as their first tokens are alike and want the same
experts. On a CPU, products one by one are as fast as a batched one, so that there each expert can
have a size of its own, the smallest of a few that holds its queue.

Shapes: T tokens, E experts, k experts per token, D width.
"""

import functools

import jax
import jax.numpy as jnp

from moemoe_jax.nn.experts import Experts
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
    experts: Experts,
    inputs: jax.Array,
    numbers: jax.Array,
    load: jax.Array,
    sizes: tuple[int, ...],
) -> jax.Array:
    """Runs each expert on its rows.

    Args:
      experts: E of them.
      inputs: float [E, T, D], the queue of each expert in front.
      numbers: int32 [E, T], of the rows.
      load: int32 [E], how many rows each has.
      sizes: from `sizes_for`.

    Returns:
      [E, T, D], zeros beyond the size that was chosen.
    """
    return _in_turn(experts.run, sizes, experts.kernels, experts.key, inputs, numbers, load)


# Derived by itself, the loop would add to the gradient of all E kernels in every one of E turns.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_turn(run, sizes, kernels, key, inputs, numbers, load):
    def forward(size, own, rows, numbers):
        if not size:
            return jnp.zeros_like(rows)
        return _padded(run(own(), key, rows[:size], numbers[:size], jnp.matmul), rows)

    return _each(forward, sizes, kernels, load, inputs, numbers)


def _forward(run, sizes, *arguments):
    return _in_turn(run, sizes, *arguments), arguments


def _backward(run, sizes, arguments, gradient):
    kernels, key, inputs, numbers, load = arguments

    def backward(size, own, rows, numbers, gradient):
        if not size:
            return jax.tree.map(jnp.zeros_like, own()), jnp.zeros_like(rows)

        def outputs(kernels, rows):
            return run(kernels, key, rows, numbers[:size], jnp.matmul)

        by_kernels, by_rows = jax.vjp(outputs, own(), rows[:size])[1](gradient[:size])
        return by_kernels, _padded(by_rows, rows)

    by_kernels, by_inputs = _each(backward, sizes, kernels, load, inputs, numbers, gradient)
    return by_kernels, None, by_inputs, None, None


_in_turn.defvjp(_forward, _backward)


def _each(function, sizes, kernels, load, *arrays):
    """function(size, own, *rows) of one expert after the other, its results stacked.

    `own()` is the expert's kernels, [in, out] each, which a branch that does not ask leaves alone.
    """

    def turn(_, expert):
        index, load, *rows = expert

        def own():
            return jax.tree.map(
                lambda kernel: jax.lax.dynamic_index_in_dim(kernel, index, keepdims=False), kernels
            )

        branches = [functools.partial(function, size, own) for size in sizes]
        chosen = jnp.sum(load > jnp.array(sizes[:-1], jnp.int32))
        return None, jax.lax.switch(chosen, branches, *rows)

    return jax.lax.scan(turn, None, (jnp.arange(load.shape[0]), load, *arrays))[1]


def _padded(some: jax.Array, rows: jax.Array) -> jax.Array:
    """The first of as many rows as there are, with zeros for the others."""
    return jnp.pad(some, ((0, rows.shape[0] - some.shape[0]), (0, 0)))
