"""Matrix products of a text stack by formula: an encoder's blocks, or a decoder's.

Counting is as in `flops`, which has the letters of shapes.
"""

import dataclasses

from moemoe_jax.nn.blocks import block_sizes, usual_blocks
from moemoe_jax.nn.dispatch import choose
from moemoe_jax.nn.in_turn import sizes_for
from moemoe_jax.nn.lending import room_for
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.queues import capacity, capacity_tiers
from moemoe_jax.nn.spread import slots_of_devices
from moemoe_jax.nn.t5_block import T5Config


@dataclasses.dataclass
class Part:
    """Operations of a part of the model, in one step of the whole batch.

    `again` is what rematerialisation repeats of the forward pass; it is part of nothing else.
    """

    forward: float = 0.0
    backward: float = 0.0
    again: float = 0.0

    def linear(self, flops: float, flows: bool, trained: bool, again: bool = False) -> None:
        """Adds a product with parameters; `flows`: whether its input needs a gradient."""
        self.pair(flops, flows, trained, again)

    def pair(self, flops: float, left: bool, right: bool, again: bool = False) -> None:
        """Adds a product of two arrays, of which `left` and `right` need a gradient."""
        self.forward += flops
        self.backward += flops * (left + right)
        self.again += flops if again and (left or right) else 0.0


@dataclasses.dataclass(frozen=True)
class Memory:
    """What cross-attention reads: `memories` of so many `rows`.

    `flows` and `weighed`: whether the rows, and their weights, need a gradient.
    """

    rows: int
    memories: int
    flows: bool
    weighed: bool


def text_stack(
    part: Part,
    text: T5Config,
    moe: MoEConfig,
    parts: tuple[int, int],
    moe_layers: tuple[int, ...],
    dense: bool,
    experts: bool,
    *,
    rows: int,
    length: int,
    seen: int | None = None,
    steps: int = 1,
    beams: int = 1,
    memory: Memory | None = None,
) -> None:
    """Adds all blocks of an encoder, or of a decoder where there is a memory.

    `parts` is in how many the batch and the experts are split, `steps` in how many a row is read;
    self-attention sees the first `seen` of a row, by default all `length`, and of `beams` rows that
    share a cache those of all.
    """
    tokens, width = rows * length, text.d_model
    seen = length if seen is None else seen
    inner, depth = text.num_heads * text.d_kv, text.num_decoder_layers if memory else None
    depth = depth or text.num_layers
    full, pairs = text.remat == "full", text.remat != "none"
    trained = moe_layers if experts else ()
    first = _first_with_gradient(text, trained, depth) if not dense else -1
    if memory and (memory.flows or memory.weighed):
        first = -1
    for layer in range(depth):
        flows = dense or layer > first
        part.linear(2.0 * (tokens + 2 * rows * seen) * width * inner, flows, dense, full)
        scores = 2.0 * rows * length * seen * beams * inner
        part.pair(scores, flows, flows, pairs)
        part.pair(scores, flows, flows, pairs)
        if dense:  # the gradient of the position bias
            part.backward += 2.0 * rows * text.num_heads * length * seen
        part.linear(2.0 * tokens * width * inner, flows, dense, full)
        if memory:
            _cross_attention(part, text, memory, tokens, flows, dense)
        if layer in moe_layers:
            _mixture(part, text, moe, parts, tokens, rows // beams, flows, experts, steps)
        else:
            size = 2.0 * tokens * width * text.d_ff
            inputs = 2 if text.activation == "gated-gelu" else 1
            part.linear(inputs * size, flows, dense, full)
            part.linear(size, flows, dense)


def _first_with_gradient(text: T5Config, moe_layers: tuple[int, ...], depth: int) -> int:
    """The layer after which the running value needs a gradient, with experts alone trained.

    A scan has one body: its running value needs one in every layer, or in none.
    """
    if not moe_layers:
        return depth
    return -1 if text.scan_layers else moe_layers[0]


def _cross_attention(
    part: Part, text: T5Config, memory: Memory, tokens: int, flows: bool, dense: bool
) -> None:
    width, inner = text.d_model, text.num_heads * text.d_kv
    full, pairs = text.remat == "full", text.remat != "none"
    part.linear(2.0 * tokens * width * inner, flows, dense, full)
    part.linear(4.0 * memory.memories * memory.rows * width * inner, memory.flows, dense)
    given = memory.flows or dense
    part.pair(2.0 * tokens * memory.rows * inner, flows, given, pairs)
    part.pair(2.0 * tokens * memory.rows * inner, flows or given, given, pairs)
    part.linear(2.0 * tokens * width * inner, flows or given, dense, full)


def mixture_rows(moe: MoEConfig, tokens: int, shards: int, parts: int) -> tuple[int, int]:
    """Rows that the experts compute together: the usual queues, with their empty slots.

    What "auto" is depends on the mesh in use.

    Args:
      moe: of the layer.
      tokens: of the whole batch.
      shards: parts that it is split into.
      parts: that the experts are dealt into.

    Returns:
      Those rows, and the rows that travel to where their experts are.
    """
    size, top_k, count = -(-tokens // shards), moe.top_k, moe.num_experts
    tiers = capacity_tiers(size, top_k, count)
    if moe.capacity_factor is not None:
        most = int(capacity(moe.capacity_factor, tokens, top_k, count))
        smaller = () if shards == 1 else tuple(tier for tier in tiers if tier < most)
        tiers = (*smaller, min(size, most))
    backend = choose(moe.dispatch, tiers, size)
    if backend == "ragged":
        return tokens * top_k, 0
    if backend == "in_turn":
        return shards * count * sizes_for(size * top_k / count, tiers[-1]).usual, 0
    if backend == "grouped":
        sent, sizes = 0, (size, top_k, count, tiers[-1])
        if parts > 1:
            sent = parts * slots_of_devices(*sizes[:3], parts, tiers[-1])[0]
            sizes = (sent, 1, count // parts, sent)
        rows, blocks = block_sizes(*sizes)
        return shards * rows * usual_blocks(blocks, sizes[2]), shards * sent
    slots = count * (size if backend == "dense" else tiers[0])
    if parts > 1:
        return shards * slots, shards * slots
    lends = backend == "index" and moe.capacity_factor is None
    room = room_for(size, top_k, count) if lends else None
    return shards * (slots if room is None else room.slots(count)), 0


def _mixture(
    part: Part,
    text: T5Config,
    moe: MoEConfig,
    parts: tuple[int, int],
    tokens: int,
    rows: int,
    flows: bool,
    experts: bool,
    steps: int,
) -> None:
    again = text.remat != "none"
    routed = tokens if moe.routing_level == "token" else rows * steps
    maps = 2 if moe.noise == "learned" else 1
    part.linear(2.0 * maps * routed * text.d_model * moe.num_experts, flows, experts, again)
    batch_parts, expert_parts = parts
    at_a_time, _ = mixture_rows(moe, tokens // steps, batch_parts, expert_parts)
    size = 2.0 * steps * at_a_time * text.d_model * text.d_ff
    inputs = 2 if text.activation == "gated-gelu" else 1
    part.linear(inputs * size, flows, experts, again)
    part.linear(size, flows or experts, experts, again)
