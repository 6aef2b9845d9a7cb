"""Dispatch: tokens to their experts and back, by index.

Each expert has a queue (see `queues`) in C slots. Rows move by gathers alone, forwards and
backwards: a `Plan` holds the map from slots to tokens *and* its inverse.

Dropless is exact and does not pay for the worst case: C is one of a few static tiers, and the
smallest that holds the longest queue of the batch is chosen at run time. On one device, the first
tier is a little more than the mean and has slots that are lent (see `lending`). With a capacity
factor there is one C. No tiers are needed where queues lie one after the other: on TPUs in blocks
(see `blocks`), on CPUs row by row, for experts that take turns (see `in_turn`).

All of this is for the tokens of one device; `spread` sends rows between devices.

Shapes: T tokens, D width, E experts, k experts per token, C slots per expert.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moemoe_jax.nn import in_turn
from moemoe_jax.nn.blocks import block_sizes, lay_out
from moemoe_jax.nn.experts import Experts
from moemoe_jax.nn.grouped import grouped_dot
from moemoe_jax.nn.lending import copies, lend, room_for
from moemoe_jax.nn.queues import Queue, capacity, capacity_tiers, enqueue
from moemoe_jax.nn.routing import Routing, pick
from moemoe_jax.parallel.axes import mesh_in_use, platform_in_use, shards


class Plan(NamedTuple):
    """Two maps that are each other's inverse; a choice (t, j) is numbered t * k + j.

    Attributes:
      source: int32 [slots], the choice in each slot, T * k if empty.
      target: int32 [T, k], the slot of each choice, `slots` if it has none.
    """

    source: jax.Array
    target: jax.Array


def make_plan(slot: jax.Array, slots: int) -> Plan:
    """Inverts int [T, k] `slot` (`slots` = none). Only indices are scattered, never vectors."""
    choices = jnp.arange(slot.size, dtype=jnp.int32)
    empty = jnp.full(slots, slot.size, jnp.int32)
    return Plan(empty.at[slot.ravel()].set(choices, mode="drop"), slot)


@jax.custom_vjp
def take(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """Gathers rows: x [N, D], index int [M] -> [M, D]; an index of N gives a row of zeros.

    `inverse` int [N, r] lists where each row went (M = nowhere), which makes the backward pass a
    gather and a sum over r in place of a scatter-add: faster, and in the same order every time.
    """
    del inverse
    return x.at[index].get(mode="fill", fill_value=0)


def _take_forward(x, index, inverse):
    return take(x, index, inverse), inverse


def _take_backward(inverse, gradient):
    return jnp.sum(gradient.at[inverse].get(mode="fill", fill_value=0), axis=1), None, None


take.defvjp(_take_forward, _take_backward)


def dispatch(x: jax.Array, queue: Queue, slots_per_expert: int) -> tuple[jax.Array, Plan]:
    """Brings tokens to their experts.

    Args:
      x: float [T, D].
      queue: of their choices; no kept position may reach `slots_per_expert`.
      slots_per_expert: C.

    Returns:
      [E, C, D] with zeros in empty slots, and the plan that `combine` needs.
    """
    num_experts = queue.load.shape[0]
    slot = queue.expert * slots_per_expert + queue.position
    inputs, plan = fill(x, queue, slot, num_experts * slots_per_expert)
    return inputs.reshape(num_experts, slots_per_expert, -1), plan


def fill(x: jax.Array, queue: Queue, slot: jax.Array, slots: int) -> tuple[jax.Array, Plan]:
    """Brings tokens [T, D] to int [T, k] `slot`, where they are kept: [slots, D] and the plan."""
    plan = make_plan(jnp.where(queue.kept, slot, slots), slots)
    return take(x, plan.source // slot.shape[1], plan.target), plan


def combine(outputs: jax.Array, plan: Plan, weights: jax.Array) -> jax.Array:
    """Brings the outputs back: y_t = sum_j weights[t, j] output of (t, j), summed in float32.

    Args:
      outputs: float [E, C, D], or any [..., D] with one row per slot.
      plan: from `dispatch`.
      weights: float32 [T, k]. A choice without a slot contributes zero.

    Returns:
      [T, D] in the dtype of `outputs`.
    """
    rows = outputs.reshape(-1, outputs.shape[-1])
    rows = take(rows, plan.target.ravel(), plan.source[:, None]).reshape(*weights.shape, -1)
    return jnp.sum(weights[..., None] * rows.astype(jnp.float32), axis=1).astype(outputs.dtype)


# Back ends: (experts, x [T, D], weights [T, k], queue, tiers, loans or None) -> [T, D].


def batched_dot(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """[E, C, in] by [E, in, out]: one matrix product per expert."""
    return jnp.einsum("eci,eio->eco", rows, kernel)


def _index(experts, x, weights, queue, tiers, loans):
    """Gathers into [E, C, D] with the smallest tier C that holds the longest queue.

    Where there are `loans`, their room takes the first tier's place.
    """
    # A switch keeps room for what the backward pass of every branch needs, taken or not. All but
    # the usual branch therefore keep nothing and compute their forward pass again.
    branches = [functools.partial(_in_tier, size, experts) for size in tiers]
    branches[1:] = [jax.checkpoint(branch) for branch in branches[1:]]
    tier = jnp.sum(queue.longest > jnp.array(tiers[:-1], jnp.int32))
    if loans is not None:
        branches[0] = functools.partial(_in_room, loans, experts)
        tier = jnp.where(loans.wanted <= loans.room.blocks, 0, jnp.maximum(tier, 1))
    return jax.lax.switch(tier, branches, x, weights, queue)


def _in_tier(size, experts, x, weights, queue):
    inputs, plan = dispatch(x, queue, size)
    tokens = (plan.source // weights.shape[1]).reshape(inputs.shape[:2])
    everyone = jnp.arange(inputs.shape[0])
    return combine(experts(inputs, _numbers(queue, tokens, everyone), batched_dot), plan, weights)


def _in_room(loans, experts, x, weights, queue):
    """As in a tier, but past an expert's own slots a queue goes on in the blocks lent to it."""
    room, count, width = loans.room, queue.load.shape[0], x.shape[1]
    own = count * room.own
    past = queue.position - room.own
    lent = own + loans.first[queue.expert] * room.size + past
    slot = jnp.where(past < 0, queue.expert * room.own + queue.position, lent)
    rows, plan = fill(x, queue, slot, room.slots(count))
    tokens = plan.source // weights.shape[1]

    def run(part, whose, dot):
        shape = (whose.shape[0], -1)
        numbers = _numbers(queue, tokens[part].reshape(shape), whose)
        return experts(rows[part].reshape(*shape, width), numbers, dot).reshape(-1, width)

    outputs = [
        run(slice(own), jnp.arange(count), batched_dot),
        run(
            slice(own, None),
            loans.owner,
            lambda rows, kernel: batched_dot(rows, copies(kernel, loans.owner)),
        ),
    ]
    return combine(jnp.concatenate(outputs), plan, weights)


def _dense(experts, x, weights, queue, tiers, loans):
    """Runs every expert on every token: the oracle of the others, and cheapest for a few tokens."""
    del tiers, loans
    count, tokens = queue.load.shape[0], x.shape[0]
    everyone = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (count, tokens))
    rows = jnp.repeat(x[None], count, axis=0)
    outputs = experts(rows, _numbers(queue, everyone, jnp.arange(count)), batched_dot)  # [E, T, D]
    share = jax.nn.one_hot(queue.expert, count) * jnp.where(queue.kept, weights, 0.0)[..., None]
    share = jnp.sum(share, axis=1).T  # [E, T]
    mixed = jnp.sum(share[..., None] * outputs.astype(jnp.float32), axis=0)
    return mixed.astype(outputs.dtype)


def _numbers(queue: Queue, tokens: jax.Array, experts: jax.Array) -> jax.Array:
    """The numbers of rows [N, C] that hold these `tokens`, each N-th of them for one expert."""
    return (queue.first + tokens) * queue.load.shape[0] + experts[:, None]


def _ragged(experts, x, weights, queue, tiers, loans):
    """Sorts the choices by expert and multiplies with `jax.lax.ragged_dot`: no empty slots."""
    del tiers, loans
    start = jnp.cumsum(queue.load) - queue.load
    dot = functools.partial(jax.lax.ragged_dot, group_sizes=queue.load)
    return _sorted(experts, x, weights, queue, start, weights.size, dot)


def _in_turn(experts, x, weights, queue, tiers, loans):
    """Sorts the choices by expert, and has one expert after the other multiply its own."""
    del loans
    sizes = in_turn.sizes_for(weights.size / queue.load.shape[0], tiers[-1])
    turns = in_turn.line_up(queue.load, sizes)
    slots = weights.size + sizes.behind

    def dot(rows, kernel):
        return in_turn.dot_in_turn(sizes, rows, kernel, turns)

    return _sorted(experts, x, weights, queue, turns.starts(), slots, dot)


def _sorted(experts, x, weights, queue, start, slots, dot):
    """Each queue in a row of slots, from int32 [E] `start` on."""
    top_k, count = weights.shape[1], queue.load.shape[0]
    rows, plan = fill(x, queue, start[queue.expert] + queue.position, slots)
    expert = queue.expert.ravel().at[plan.source].get(mode="fill", fill_value=0)
    numbers = (queue.first + plan.source // top_k) * count + expert
    return combine(experts(rows, numbers, dot), plan, weights)


def _grouped(experts, x, weights, queue, tiers, loans):
    """Lays the queues out in blocks, with a product that passes over those that are empty."""
    del loans
    top_k, count = weights.shape[1], queue.load.shape[0]
    size, blocks = block_sizes(x.shape[0], top_k, count, tiers[-1])
    layout, first = lay_out(queue.load, blocks, size)
    slot = first[queue.expert] * size + queue.position
    rows, plan = fill(x, queue, slot, blocks * size)
    shape = (blocks, size)
    numbers = _numbers(queue, (plan.source // top_k).reshape(shape), layout.owner)

    def dot(rows, kernel):
        return grouped_dot(rows, kernel, layout)

    return combine(experts(rows.reshape(*shape, -1), numbers, dot), plan, weights)


DISPATCHERS: dict[str, Callable[..., jax.Array]] = {
    "index": _index,
    "dense": _dense,
    "ragged": _ragged,
    "grouped": _grouped,
    "in_turn": _in_turn,
}


def choose(backend: str, tiers: tuple[int, ...], tokens: int) -> str:
    """Resolves "auto", for the devices in use: what docs/roofline.md and benchmarks.md find best.

    "dense" where it computes no more than the others. Else, where each device has all experts,
    whole: "grouped" on TPUs, whose compiler has a kernel for it, and "in_turn" on CPUs. "index"
    everywhere else. On a CPU "ragged" takes several times as long, as `ragged_dot` there is a loop;
    on a TPU its gradient by the kernels multiplies all rows with all experts.
    """
    if backend != "auto":
        return backend
    if tiers == (tokens,):
        return "dense"
    mesh = mesh_in_use()
    if mesh is not None and shards("expert", mesh) * shards("mlp", mesh) > 1:
        return "index"
    return {"tpu": "grouped", "cpu": "in_turn"}.get(platform_in_use(), "index")


def mix(
    experts: Experts,
    x: jax.Array,
    routing: Routing,
    valid: jax.Array,
    *,
    capacity_factor: float | None = None,
    backend: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """MoE(x) = sum_i w_i f_i(x) over the chosen experts of each token.

    Args:
      experts: all f_i at once.
      x: float [T, D].
      routing: of those tokens.
      valid: bool [T]; padding takes no slot and comes back as zeros.
      capacity_factor: slots per expert over the even load; None drops nothing.
      backend: a name in `DISPATCHERS`, or "auto" (see `choose`).

    Returns:
      [T, D], and which choices were kept, bool [T, k].

    Raises:
      ValueError: an unknown back end.
    """
    (tokens, top_k), num_experts = routing.experts.shape, routing.probs.shape[-1]
    room = None
    if capacity_factor is None:
        tiers = capacity_tiers(tokens, top_k, num_experts)
        room = room_for(tokens, top_k, num_experts)
    else:
        tiers = (int(capacity(capacity_factor, tokens, top_k, num_experts)),)
    run = pick(DISPATCHERS, choose(backend, tiers, tokens), "dispatch back end")
    queue = enqueue(routing.experts, valid, num_experts, capacity_factor)
    loans = None if room is None else lend(queue.load, room)
    return run(experts, x, routing.weights, queue, tiers, loans), queue.kept


def dropped(kept: jax.Array, valid: jax.Array) -> jax.Array:
    """The fraction of the valid tokens' choices that was not kept, float32 []."""
    wanted = kept.shape[1] * jnp.sum(valid)
    return (wanted - jnp.sum(kept)) / jnp.maximum(wanted, 1)
