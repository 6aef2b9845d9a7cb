"""Dispatch: tokens to their experts and back, by index.

Each expert has a queue of C slots, filled token by token, so that a later token never evicts an
earlier one and a decoder stays causal. Rows move by gathers alone, forwards and backwards: a
`Plan` holds the map from slots to tokens *and* its inverse.

Dropless is exact and does not pay for the worst case: C is one of a few static tiers, and the
smallest that holds the longest queue of the batch is chosen at run time. With a capacity factor
there is one C; what does not fit is dropped, counted, and contributes zero.

Shapes: G groups, T tokens, D width, E experts, k experts per token, C slots per expert.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moemoe_jax.nn.routing import Routing, pick

TIERS = (1.25, 2.5)  # capacities below "everything", in multiples of an even load
SMALL = 64  # up to so many tokens, choosing a tier costs more than it saves
ALIGN = 8  # capacities are multiples of this, as accelerators tile rows

Dot = Callable[[jax.Array, jax.Array], jax.Array]
"""(rows [..., in], kernel [E, in, out]) -> rows [..., out], each row by its own expert's kernel."""

Experts = Callable[[jax.Array, Dot], jax.Array]
"""The experts: rows in, rows out, whose kernels are applied with the given `Dot`."""


class Queue(NamedTuple):
    """Where each choice stands in the queue of its expert.

    Attributes:
      expert: int32 [T, k], the choices.
      position: int32 [T, k], how many earlier tokens chose the same expert.
      kept: bool [T, k], False for padding and for what is past the capacity.
      load: int32 [E], kept choices per expert.
    """

    expert: jax.Array
    position: jax.Array
    kept: jax.Array
    load: jax.Array


class Plan(NamedTuple):
    """Two maps that are each other's inverse; a choice (t, j) is numbered t * k + j.

    Attributes:
      source: int32 [slots], the choice in each slot, T * k if empty.
      target: int32 [T, k], the slot of each choice, `slots` if it has none.
    """

    source: jax.Array
    target: jax.Array


def capacity(factor: float, tokens: int | np.ndarray, top_k: int, num_experts: int) -> np.ndarray:
    """Slots per expert for `tokens` tokens: factor times the even load, rounded up."""
    slots = np.ceil(factor * top_k * np.asarray(tokens) / num_experts).astype(np.int32)
    return np.minimum(slots, tokens)


def capacity_tiers(tokens: int, top_k: int, num_experts: int) -> tuple[int, ...]:
    """Growing capacities, the last of which (`tokens`) holds any routing at all."""
    if tokens <= SMALL:
        return (tokens,)
    sizes = (int(capacity(factor, tokens, top_k, num_experts)) for factor in TIERS)
    aligned = {-(-size // ALIGN) * ALIGN for size in sizes}
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
    if capacity_factor is not None:
        limits = capacity(capacity_factor, np.arange(tokens + 1), top_k, num_experts)
        limit = jnp.asarray(limits)[jnp.sum(valid)]
        load, kept = jnp.minimum(load, limit), kept & (position < limit)
    return Queue(experts, position, kept, load)


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
    slots = num_experts * slots_per_expert
    slot = jnp.where(queue.kept, queue.expert * slots_per_expert + queue.position, slots)
    plan = make_plan(slot, slots)
    inputs = take(x, plan.source // slot.shape[1], plan.target)
    return inputs.reshape(num_experts, slots_per_expert, -1), plan


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


# Back ends: (experts, x [G, T, D], weights [G, T, k], queue, tiers) -> [G, T, D].


def batched_dot(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., E, C, in] by [E, in, out]: one matrix product per expert."""
    return jnp.einsum("...eci,eio->...eco", rows, kernel)


def _index(experts, x, weights, queue, tiers):
    """Gathers into [G, E, C, D] with the smallest tier C that holds the longest queue."""

    def run(size, x, weights, queue):
        send = functools.partial(dispatch, slots_per_expert=size)
        inputs, plan = jax.vmap(send)(x, queue)
        return jax.vmap(combine)(experts(inputs, batched_dot), plan, weights)

    # A switch keeps room for what the backward pass of every branch needs, taken or not. All but
    # the usual branch therefore keep nothing and compute their forward pass again.
    branches = [functools.partial(run, size) for size in tiers]
    branches[1:] = [jax.checkpoint(branch) for branch in branches[1:]]
    tier = jnp.sum(jnp.max(queue.load) > jnp.array(tiers[:-1], jnp.int32))
    return jax.lax.switch(tier, branches, x, weights, queue)


def _dense(experts, x, weights, queue, tiers):
    """Runs every expert on every token: the oracle of the others, and cheapest for a few tokens."""
    del tiers
    count = queue.load.shape[-1]
    outputs = experts(jnp.repeat(x[:, None], count, axis=1), batched_dot)  # [G, E, T, D]
    share = jax.nn.one_hot(queue.expert, count) * jnp.where(queue.kept, weights, 0.0)[..., None]
    share = jnp.moveaxis(jnp.sum(share, axis=2), 1, 2)  # [G, E, T]
    mixed = jnp.sum(share[..., None] * outputs.astype(jnp.float32), axis=1)
    return mixed.astype(outputs.dtype)


def _ragged(experts, x, weights, queue, tiers):
    """Sorts the choices by expert and multiplies with `jax.lax.ragged_dot`: no empty slots."""
    del tiers

    def one(x, weights, queue):
        start = jnp.cumsum(queue.load) - queue.load
        slot = jnp.where(queue.kept, start[queue.expert] + queue.position, weights.size)
        plan = make_plan(slot, slot.size)
        rows = take(x, plan.source // slot.shape[1], plan.target)
        rows = experts(rows, functools.partial(jax.lax.ragged_dot, group_sizes=queue.load))
        return combine(rows, plan, weights)

    groups = [jax.tree.map(lambda a, g=g: a[g], (x, weights, queue)) for g in range(len(x))]
    return jnp.stack([one(*group) for group in groups])


DISPATCHERS: dict[str, Callable[..., jax.Array]] = {
    "index": _index,
    "dense": _dense,
    "ragged": _ragged,
}


def mix(
    experts: Experts,
    x: jax.Array,
    routing: Routing,
    valid: jax.Array,
    *,
    capacity_factor: float | None = None,
    backend: str = "auto",
    groups: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """MoE(x) = sum_i w_i f_i(x) over the chosen experts of each token.

    Args:
      experts: all f_i at once.
      x: float [T, D].
      routing: of those tokens.
      valid: bool [T]; padding takes no slot and comes back as zeros.
      capacity_factor: slots per expert over the even load; None drops nothing.
      backend: a name in `DISPATCHERS`, or "auto": "index", unless "dense" computes no more.
      groups: tokens are dispatched in so many equal groups, each with queues of its own. One per
        data shard keeps every token's rows on its shard; where T is not a multiple, the greatest
        common divisor counts. Without a capacity the result does not depend on it.

    Returns:
      [T, D], and the fraction of choices that were dropped, float32 [].

    Raises:
      ValueError: an unknown back end.
    """
    (tokens, top_k), num_experts = routing.experts.shape, routing.probs.shape[-1]
    groups = math.gcd(groups, tokens)
    size = tokens // groups
    if capacity_factor is None:
        tiers = capacity_tiers(size, top_k, num_experts)
    else:
        tiers = (int(capacity(capacity_factor, size, top_k, num_experts)),)
    if backend == "auto":
        backend = "dense" if tiers == (size,) else "index"

    arrays = (x, routing.experts, routing.weights, valid)
    arrays = [a.reshape(groups, size, *a.shape[1:]) for a in arrays]
    x, chosen, weights, valid = arrays
    line_up = functools.partial(enqueue, num_experts=num_experts, capacity_factor=capacity_factor)
    queue = jax.vmap(line_up)(chosen, valid)
    y = pick(DISPATCHERS, backend, "dispatch back end")(experts, x, weights, queue, tiers)
    wanted = top_k * jnp.sum(valid)
    dropped = (wanted - jnp.sum(queue.kept)) / jnp.maximum(wanted, 1)
    return y.reshape(tokens, -1), dropped
