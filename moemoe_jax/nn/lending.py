"""Slots that are lent: room for uneven queues at hardly more than the cost of even ones.

A batch's queues to E experts are never even, and the more experts there are, the less: with 64, the
longest is often half as long again as the mean. If all have room for the longest, most of it stays
empty. Here each expert has slots of its own for little more than the mean; further blocks of slots
are lent, whole, to those whose queues are longer, and with each goes a copy of its expert's kernel.

Shapes: T tokens, E experts, k experts per token, B blocks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

OWN = 1.0625  # slots of each expert, in multiples of the mean queue
BLOCK = 0.125  # slots of a block, likewise
LEAST_BLOCK = 64  # slots for which copying a kernel pays
LEAST_QUEUE = 2 * LEAST_BLOCK  # below this mean, copies cost more than empty slots
ALIGN = 8  # numbers of slots are multiples of this, as accelerators tile rows


class Room(NamedTuple):
    """`own` slots for each expert, and `blocks` of `size` slots to be lent."""

    own: int
    blocks: int
    size: int

    def slots(self, num_experts: int) -> int:
        """All slots together."""
        return num_experts * self.own + self.blocks * self.size


def align(slots: float) -> int:
    """Rounds up to a multiple of `ALIGN`."""
    return int(-(-slots // ALIGN) * ALIGN)


def room_for(tokens: int, top_k: int, num_experts: int) -> Room | None:
    """The room for T tokens; None where lending does not pay."""
    mean = top_k * tokens / num_experts
    if not LEAST_QUEUE <= mean < tokens / 2:
        return None
    return Room(align(OWN * mean), num_experts // 2, align(max(BLOCK * mean, LEAST_BLOCK)))


class Loans(NamedTuple):
    """Who has which block.

    Attributes:
      room: in which they lie.
      first: int32 [E], the first block of each expert, if it has any; they follow one another.
      owner: int32 [B], the expert of each block, in growing order; that of a block which nobody
        needs is any.
      wanted: int32 [], the blocks that are needed: with more than B, the queues do not fit. On
        many devices, the most that any of them needs.
    """

    room: Room
    first: jax.Array
    owner: jax.Array
    wanted: jax.Array


def lend(load: jax.Array, room: Room) -> Loans:
    """Deals the blocks out to queues of int32 [E] lengths."""
    wanted = -(-jnp.maximum(load - room.own, 0) // room.size)
    last = jnp.cumsum(wanted)
    owner = jnp.sum(last <= jnp.arange(room.blocks)[:, None], axis=1, dtype=jnp.int32)
    return Loans(room, last - wanted, jnp.minimum(owner, load.shape[0] - 1), last[-1])


def copies(kernel: jax.Array, owner: jax.Array) -> jax.Array:
    """The kernels [B, in, out] of the owners of blocks, from those of all experts [E, in, out].

    Going back, the gradients of copies are added to their expert's one after the other, which is
    far cheaper on a CPU than a product with ones. Only a GPU may add in another order every time.
    """
    return kernel.at[owner].get(indices_are_sorted=True, mode="promise_in_bounds")
