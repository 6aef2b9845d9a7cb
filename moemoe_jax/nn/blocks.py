"""Rows in blocks, each of one expert: queues of any length, in room for what there is.

Every expert's queue begins with a block of its own. So less than a block of each is empty, and
ceil(rows / B) + E - 1 blocks hold any routing at all: there are no tiers to choose from.

Shapes: T tokens, E experts, k experts per token, N blocks of B rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MOST = 256  # rows of a block, beyond which a longer one saves nothing
LEAST = 16  # a TPU's memory holds that many rows of bfloat16 in a tile


class Blocks(NamedTuple):
    """Which rows belong to whom.

    Attributes:
      owner: int32 [N], the expert of each block, in growing order. Each has at least one; those
        that nobody needs are the last expert's.
      source: int32 [N], the block itself if there are rows in it, or else the last one before it
        that has any. The first block counts as one with rows.
    """

    owner: jax.Array
    source: jax.Array


def block_sizes(tokens: int, top_k: int, num_experts: int, most: int) -> tuple[int, int]:
    """B and N: room for k choices of each of T tokens, at most `most` of them for an expert.

    B is a power of two, at most half of the mean queue where that is not too small.
    """
    choices = tokens * top_k
    half = max(choices // (2 * num_experts), 1)
    size = min(max(1 << (half.bit_length() - 1), LEAST), MOST)
    return size, -(-min(choices, num_experts * most) // size) + num_experts - 1


def usual_blocks(blocks: int, num_experts: int) -> int:
    """How many of N have rows, on average: the last block of a queue is as good as half full."""
    return blocks - num_experts // 2


def lay_out(load: jax.Array, blocks: int, size: int) -> tuple[Blocks, jax.Array]:
    """Deals N blocks of `size` rows out to queues of int32 [E] lengths.

    Returns:
      The blocks, and the first of each expert, int32 [E].
    """
    needed = -(-load // size)
    last = jnp.cumsum(jnp.maximum(needed, 1))
    first = last - jnp.maximum(needed, 1)
    place = jnp.arange(blocks, dtype=jnp.int32)
    owner = jnp.sum(last <= place[:, None], axis=1, dtype=jnp.int32)
    owner = jnp.minimum(owner, load.shape[0] - 1)
    filled = place < (first + needed)[owner]
    return Blocks(owner, jax.lax.cummax(jnp.where(filled, place, 0))), first
