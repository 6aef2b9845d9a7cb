"""A mixture of experts over many devices: rows travel to their experts and back.

Every device lines up its own tokens and fills [E, C, D]; along the mesh axis `expert`, an
all-to-all hands each device the slots of the experts that it holds, [E/n, n C, D], and another
brings the outputs back. With blocks ("grouped"), a device's slots are for all of its experts
together, which needs fewer of them, and what arrives is lined up there. No device ever holds the
tokens, or the experts, of all.

The result is that of one device. The sizes that devices must agree on (a tier, a capacity) are
settled by counts of all of them; a capacity drops the same choices, as each device knows how many
stand before its own; and what is drawn at random for a row follows from its number.

Shapes: as in `dispatch`; N devices that tokens are split over, n of them along `expert`; M slots
for the experts of a device.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
from jax.lax import all_gather, all_to_all, axis_index, axis_size, pmax, psum
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from moemoe_jax.errors import UserError
from moemoe_jax.nn import dispatch, queues
from moemoe_jax.nn.experts import Experts
from moemoe_jax.nn.lending import Loans, Room, lend, room_for
from moemoe_jax.nn.routing import Routing, pick
from moemoe_jax.parallel.axes import LOGICAL_RULES, expert_shards, mesh_in_use, shards, spec_for

TOKENS = LOGICAL_RULES["batch"]
(EXPERT,) = LOGICAL_RULES["expert"]


def mix(
    experts: Experts,
    axes: Mapping[str, tuple[str | None, ...]],
    x: jax.Array,
    routing: Routing,
    valid: jax.Array,
    *,
    capacity_factor: float | None = None,
    backend: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """`dispatch.mix`, on the mesh in use.

    Args:
      experts: all f_i.
      axes: by name, the logical axis of each dimension of a kernel.
      x: float [T, D].
      routing: of those tokens.
      valid: bool [T]; padding takes no slot and comes back as zeros.
      capacity_factor: slots per expert over the even load; None drops nothing.
      backend: a name in `dispatch.DISPATCHERS`, or "auto".

    Returns:
      [T, D], and which choices were kept, bool [T, k].

    Raises:
      UserError: experts that the mesh's axis does not divide, or a back end that cannot send rows.
    """
    mesh = mesh_in_use()
    if mesh is not None:
        check_backend(backend, mesh)
    if mesh is None or shards("batch", mesh) == 1:
        return dispatch.mix(
            experts, x, routing, valid, capacity_factor=capacity_factor, backend=backend
        )
    (tokens, top_k), num_experts = routing.experts.shape, routing.probs.shape[-1]
    parts = expert_shards(num_experts, mesh)
    missing = -tokens % shards("batch", mesh)
    arrays = (x, routing.experts, routing.weights, valid)
    arrays = [jnp.pad(a, ((0, missing), *((0, 0),) * (a.ndim - 1))) for a in arrays]
    size = arrays[0].shape[0] // shards("batch", mesh)
    tiers = _tiers(size, tokens, top_k, num_experts, capacity_factor)
    # A lent slot would be on one device and its expert on another.
    lends = parts == 1 and capacity_factor is None
    room = room_for(size, top_k, num_experts) if lends else None
    backend = dispatch.choose(backend, tiers, size)
    run = pick(dispatch.DISPATCHERS, backend, "dispatch back end")
    places = {
        name: _manual(spec_for(axes[name], kernel.shape, mesh)[0], mesh)
        for name, kernel in experts.kernels.items()
    }

    def on_device(kernels, key, x, chosen, weights, valid):
        kernels = {name: _gathered(kernels[name], places[name]) for name in kernels}
        queue = _line_up(chosen, valid, num_experts, capacity_factor, tokens)
        f = experts._replace(kernels=kernels, key=key)
        loans = None if room is None else _lend(queue, room)
        if parts == 1:
            y = run(f, x, weights, queue, tiers, loans)
        elif backend == "grouped":
            sizes = slots_of_devices(size, top_k, num_experts, parts, tiers[-1])
            y = _by_device(f, x, weights, queue, sizes)
        else:
            y = run(_away(f), x, weights, queue, tiers, None)
        return y, queue.kept

    split = PartitionSpec(TOKENS)
    y, kept = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(places, PartitionSpec(), split, split, split, split),
        out_specs=split,
        axis_names=_manual_axes(mesh),
        check_vma=False,
    )(experts.kernels, experts.key, *arrays)
    return y[:tokens], kept[:tokens]


def check_backend(backend: str, mesh: Mesh | AbstractMesh) -> None:
    """Refuses back ends that need whole what the mesh cuts.

    Raises:
      UserError: "ragged" or "in_turn" with experts dealt out; "grouped" or "in_turn" with kernels
        cut.
    """
    if backend in ("ragged", "in_turn") and shards("expert", mesh) > 1:
        raise UserError(
            f"model.moe.dispatch is {backend}, which sends no rows between devices, but "
            f"mesh.expert is {shards('expert', mesh)}; set model.moe.dispatch=auto"
        )
    if backend in ("grouped", "in_turn") and shards("mlp", mesh) > 1:
        raise UserError(
            f"model.moe.dispatch is {backend}, which multiplies with whole kernels, but "
            f"mesh.tensor is {shards('mlp', mesh)}; set model.moe.dispatch=auto"
        )


def _tiers(
    size: int, tokens: int, top_k: int, num_experts: int, capacity_factor: float | None
) -> tuple[int, ...]:
    """Slots per expert that a device may fill for its `size` of all the `tokens`."""
    tiers = queues.capacity_tiers(size, top_k, num_experts)
    if capacity_factor is None:
        return tiers
    # All that are kept may be of one device.
    most = min(size, int(queues.capacity(capacity_factor, tokens, top_k, num_experts)))
    return (*(tier for tier in tiers if tier < most), most)


def _line_up(
    chosen: jax.Array,
    valid: jax.Array,
    num_experts: int,
    capacity_factor: float | None,
    tokens: int,
) -> queues.Queue:
    """The queues of this device's tokens, within those of all `tokens`."""
    queue = queues.enqueue(chosen, valid, num_experts)
    here = axis_index(TOKENS)
    if capacity_factor is not None:
        loads = all_gather(queue.load, TOKENS)  # [N, E]
        earlier = jnp.arange(loads.shape[0])[:, None] < here
        limit = queues.capacity_of(
            psum(jnp.sum(valid), TOKENS), capacity_factor, tokens, chosen.shape[1], num_experts
        )
        queue = queue.limited(limit, jnp.sum(jnp.where(earlier, loads, 0), axis=0))
    # The branch of a tier may hold an all-to-all, or sums over `tensor`: all must take the same.
    return queue._replace(longest=pmax(queue.longest, TOKENS), first=here * chosen.shape[0])


def _lend(queue: queues.Queue, room: Room) -> Loans:
    """Slots of this device for its own queues; where one device must leave the room, all do."""
    loans = lend(queue.load, room)
    return loans._replace(wanted=pmax(loans.wanted, TOKENS))


def _away(experts: Experts) -> Callable[..., jax.Array]:
    """Experts that are dealt out along the axis `expert`, for rows of all experts."""

    def run(rows, numbers, dot):
        rows, numbers = (_there(a) for a in (rows, numbers))
        outputs = experts(rows, numbers, dot)
        return all_to_all(outputs, EXPERT, split_axis=1, concat_axis=0, tiled=True)

    return run


def _there(slots: jax.Array) -> jax.Array:
    """[E, C, ...] of the tokens here to [E/n, n C, ...] of the experts here."""
    return all_to_all(slots, EXPERT, split_axis=0, concat_axis=1, tiled=True)


def slots_of_devices(
    tokens: int, top_k: int, num_experts: int, parts: int, most: int
) -> tuple[int, ...]:
    """Growing M, the last of which holds any routing of T tokens, at most `most` an expert."""
    count = num_experts // parts
    last = min(tokens * min(top_k, count), most * count)
    tiers = queues.capacity_tiers(tokens * top_k, 1, parts)
    return (*(size for size in tiers if size < last), last)


def _by_device(experts, x, weights, queue, sizes):
    """Sends choices to the devices of their experts with the smallest M that holds them, and back.

    A device's share of the choices is more even than an expert's: M is less for the same tier.
    """
    load = queue.load.reshape(axis_size(EXPERT), -1)  # [n, E/n]
    before = (jnp.cumsum(load, axis=1) - load).ravel()
    device, place = queue.expert // load.shape[1], before[queue.expert] + queue.position
    longest = pmax(jnp.max(jnp.sum(load, axis=1)), TOKENS)
    branches = [functools.partial(_through, size, experts) for size in sizes]
    branches[1:] = [jax.checkpoint(branch) for branch in branches[1:]]
    tier = jnp.sum(longest > jnp.array(sizes[:-1], jnp.int32))
    return jax.lax.switch(tier, branches, x, weights, queue, device, place)


def _through(size, experts, x, weights, queue, device, place):
    """There, through the experts in blocks, and back, with M = `size`."""
    parts, num_experts = axis_size(EXPERT), queue.load.shape[0]
    count = num_experts // parts
    rows, plan = dispatch.fill(x, queue, device * size + place, parts * size)
    chosen = queue.expert.ravel().at[plan.source].get(mode="fill", fill_value=0)
    numbers = (queue.first + plan.source // weights.shape[1]) * num_experts + chosen
    numbers = jnp.where(plan.source < weights.size, numbers, -1)
    rows, numbers = _swapped(rows), _swapped(numbers)

    def numbered(rows, places, dot):
        return experts(rows, numbers.at[places // count].get(mode="clip"), dot)

    # An expert's number among those of its device is what it leaves, as theirs follow one another.
    here = queues.enqueue((numbers % count)[:, None], numbers >= 0, count)
    ones, most = jnp.ones((rows.shape[0], 1)), (rows.shape[0],)
    outputs = dispatch.DISPATCHERS["grouped"](numbered, rows, ones, here, most, None)
    return dispatch.combine(_swapped(outputs), plan, weights)


def _swapped(slots: jax.Array) -> jax.Array:
    """[n M, ...] for each device of the axis `expert` to [n M, ...] from each."""
    return all_to_all(slots, EXPERT, split_axis=0, concat_axis=0, tiled=True)


def _gathered(kernel: jax.Array, spec: PartitionSpec) -> jax.Array:
    """A kernel whole, but for its experts; its gradient is scattered again."""
    for dim, axis in enumerate(spec):
        if axis not in (None, EXPERT):
            kernel = all_gather(kernel, axis, axis=dim, tiled=True)
    return kernel


def _manual(spec: PartitionSpec, mesh: AbstractMesh) -> PartitionSpec:
    """A spec without the axes that are left to the compiler, or cut nothing."""
    cut = {axis for axis in TOKENS if mesh.shape[axis] > 1}
    return PartitionSpec(*(axis if axis in cut else None for axis in spec))


def _manual_axes(mesh: AbstractMesh) -> set[Any]:
    """Those that tokens are split over. `tensor`, where it cuts anything, is the compiler's."""
    return {axis for axis in mesh.axis_names if axis in TOKENS or mesh.shape[axis] == 1}
