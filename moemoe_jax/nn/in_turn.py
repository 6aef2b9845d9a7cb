"""The product of rows that lie sorted by expert: one expert after the other, each on its own rows.

On a CPU, products one by one are as fast as a batched one, and each can be of a size of its own:
the smallest of a few that holds its queue. So there are hardly any empty slots, however uneven the
queues, and each kernel is read once.

Queues lie one after the other in the order of their lengths, and so do the turns. What a product
has in excess of its queue falls on rows of the next one, whose turn comes later, or on the room
behind the last. All turns of one size are a loop of their own: a `switch` over sizes would copy,
in every turn, all that was written in those before it.

Shapes: T tokens, E experts, k experts per token, N rows, I channels in, O out.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax.lax import (
    dynamic_index_in_dim,
    dynamic_slice_in_dim,
    dynamic_update_index_in_dim,
    dynamic_update_slice_in_dim,
)
import jax.numpy as jnp
import numpy as np

from moemoe_jax.nn.lending import align

STEP, WIDE_STEP = 1.125, 1.25  # from one size to the next: up to twice the mean queue, and beyond
LEAST = 0.5  # multiples of the mean queue, below which there are no further sizes


class Sizes(NamedTuple):
    """How many rows a product may have.

    Attributes:
      rows: growing; the last of them holds any queue.
      usual: the one of even queues.
    """

    rows: tuple[int, ...]
    usual: int

    @property
    def behind(self) -> int:
        """Rows that there must be behind the last queue: the most that one can be exceeded by."""
        return int(np.max(np.diff(self.rows, prepend=0))) - 1


def sizes_for(mean: float, most: int) -> Sizes:
    """The sizes for queues of a mean length, none of which is longer than `most`."""
    rows, size = [], align(LEAST * mean)
    while size < most:
        rows.append(size)
        size = align(size * (STEP if size < 2 * mean else WIDE_STEP))
    rows.append(most)
    return Sizes(tuple(rows), next((size for size in rows if size >= mean), most))


class Turns(NamedTuple):
    """Who is when, and where its rows are.

    Attributes:
      expert: int32 [E], whose turn it is.
      load: int32 [E], its number of rows.
      start: int32 [E], the first of them.
      first: int32 [1 + sizes], the first turn of each size; those before have no rows.
    """

    expert: jax.Array
    load: jax.Array
    start: jax.Array
    first: jax.Array

    def starts(self) -> jax.Array:
        """Where the rows of each expert begin, int32 [E]."""
        return jnp.zeros_like(self.start).at[self.expert].set(self.start)


def line_up(load: jax.Array, sizes: Sizes) -> Turns:
    """Gives experts with int32 [E] rows their turns."""
    expert = jnp.argsort(load).astype(jnp.int32)
    ordered = load[expert]
    first = jnp.sum(ordered[:, None] <= jnp.array((0, *sizes.rows)), axis=0, dtype=jnp.int32)
    return Turns(expert, ordered, jnp.cumsum(ordered) - ordered, first)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dot_in_turn(sizes: Sizes, rows: jax.Array, kernel: jax.Array, turns: Turns) -> jax.Array:
    """Multiplies each row by its expert's kernel.

    Args:
      sizes: from `sizes_for`.
      rows: float [N, I], of which the last `sizes.behind` are nobody's.
      kernel: float [E, I, O].
      turns: from `line_up`.

    Returns:
      [N, O]. What stands in rows of nobody is finite, if those are.
    """

    def one(size, turn, out):
        start = turns.start[turn]
        own = dynamic_index_in_dim(kernel, turns.expert[turn], keepdims=False)
        return _put(out, _rows(rows, start, size) @ own, start)

    out = jnp.zeros((rows.shape[0], kernel.shape[2]), rows.dtype)
    return _each(one, sizes, turns, out)


def _forward(sizes, rows, kernel, turns):
    return dot_in_turn(sizes, rows, kernel, turns), (rows, kernel, turns)


def _backward(sizes, saved, gradient):
    rows, kernel, turns = saved

    def one(size, turn, found):
        by_rows, by_kernel = found
        start, expert = turns.start[turn], turns.expert[turn]
        own = dynamic_index_in_dim(kernel, expert, keepdims=False)
        along = _rows(gradient, start, size)
        mine = jnp.arange(size)[:, None] < turns.load[turn]
        collected = jnp.where(mine, _rows(rows, start, size), 0).T @ along
        by_kernel = dynamic_update_index_in_dim(by_kernel, collected, expert, 0)
        return _put(by_rows, along @ own.T, start), by_kernel

    found = jnp.zeros_like(rows), jnp.zeros_like(kernel)
    return *_each(one, sizes, turns, found), None


dot_in_turn.defvjp(_forward, _backward)


def _each(function: Callable, sizes: Sizes, turns: Turns, found):
    """Has function(size, turn, found) add to what was found, turn by turn."""
    for number, size in enumerate(sizes.rows):
        one = functools.partial(function, size)
        usually = turns.expert.shape[0] if size == sizes.usual else 0
        # How often a loop turns depends on the data: its name says it to those who count.
        with jax.named_scope(f"usually_{usually}_turns"):
            found = jax.lax.fori_loop(turns.first[number], turns.first[number + 1], one, found)
    return found


def _rows(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return dynamic_slice_in_dim(x, start, size)


def _put(x: jax.Array, some: jax.Array, start: jax.Array) -> jax.Array:
    return dynamic_update_slice_in_dim(x, some, start, 0)
