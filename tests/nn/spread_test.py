import math

import chex
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.nn import dispatch, spread
from moemoe_jax.nn.experts import Experts
from moemoe_jax.nn.moe import MoEConfig, MoEFeedForward
from moemoe_jax.nn.queues import capacity_tiers, enqueue
from moemoe_jax.nn.routing import route
from moemoe_jax.parallel.axes import using
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from moemoe_jax.parallel.sharding import batch_sharding, param_shardings, replicated
from tests.models.tiny import QUICK
from tests.parallel.meshes import collectives

D, F = 6, 12


def layer(config: MoEConfig, dropout=0.0):
    graph, params = nnx.split(
        MoEFeedForward(config, D, F, "gated-gelu", dropout=dropout, rngs=nnx.Rngs(0))
    )

    def loss(params, x, valid):
        y, stats = nnx.merge(graph, params)(x, valid, jax.random.key(7))
        return jnp.sum(jnp.sin(y)) + stats.aux_loss + 0.1 * stats.z_loss, (y, stats)

    return jax.value_and_grad(loss, (0, 1), has_aux=True), params


def on_mesh(sizes, function, params, *arguments):
    """What `function` gives on a mesh, and its program; parameters lie where the table says."""
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.sizes)])

    def run(*arguments):
        with using(mesh):
            return function(*arguments)

    placed = jax.device_put(params, param_shardings(params, mesh))
    arguments = jax.device_put(arguments, replicated(mesh))
    program = jax.jit(run, compiler_options=QUICK).lower(placed, *arguments).compile()
    return jax.device_get(program(placed, *arguments)), program


# What is random is on; 320 tokens, or 123, which are in no equal parts.
@pytest.mark.parametrize(
    ("sizes", "options", "length", "alike"),
    [
        (MeshConfig(data=2, expert=4), {"capacity_factor": 0.7, "noise": "jitter"}, 80, 0),
        (MeshConfig(data=2, expert=2, tensor=2), {"num_experts": 6, "noise": "learned"}, 41, 0),
        # Each device lends slots of its own: the mean queue of its 525 tokens is of 131. With 350
        # tokens alike the first has not enough of them, and the other leaves its room as well.
        (MeshConfig(data=2), {"dispatch": "index"}, 350, 0),
        (MeshConfig(data=2, tensor=2), {}, 350, 350),
        # Each device's experts take turns of their own.
        (MeshConfig(data=2, fsdp=2), {}, 200, 50),
        # With blocks: experts at home; or elsewhere, where a device has 56 of 80 slots but all
        # tokens of the first want the same expert; or 56 of 160, and what a capacity drops.
        (MeshConfig(data=2, fsdp=2), {"dispatch": "grouped"}, 41, 0),
        (MeshConfig(data=2, expert=2), {"dispatch": "grouped", "top_k": 1}, 80, 80),
        (
            MeshConfig(data=1, expert=4),
            {"dispatch": "grouped", "capacity_factor": 0.7, "noise": "jitter"},
            80,
            0,
        ),
    ],
)
def test_a_layer_on_many_devices_equals_one_in_value_and_gradient(sizes, options, length, alike):
    config = MoEConfig(**{"num_experts": 8, "router_std": 1.0} | options)
    function, params = layer(config, dropout=0.3)
    x = jax.random.normal(jax.random.key(1), (3 + (length == 80), length, D))
    x = x.at[0, :alike].set(x[0, 0])
    valid = jnp.arange(length) < length - 3 * jnp.arange(len(x))[:, None]
    one, _ = on_mesh(MeshConfig(data=1), function, params, x, valid)
    many, _ = on_mesh(sizes, function, params, x, valid)
    chex.assert_trees_all_close(many, one, atol=2e-5, rtol=1e-5)
    assert (one[0][1][1].dropped > 0.1) == (config.capacity_factor is not None)


def test_devices_agree_on_a_tier_and_none_holds_what_is_of_all():
    # 4 x 100 tokens in groups of 2 devices each: tiers of 64 and 100 slots for 4 experts.
    tokens, experts, k = 400, 4, 2
    assert capacity_tiers(100, k, experts) == (64, 100)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (tokens, D))
    kernels = {"w": jax.random.normal(keys[1], (experts, D, D))}
    # Row t wants experts t and t + 1; or, on the first device alone, 0 and 1.
    turn = jnp.arange(tokens)
    crowded = jnp.where(turn < 100, 0, turn % experts)
    valid = turn != 7
    mesh = make_mesh(MeshConfig(data=2, expert=2), jax.devices()[:4])

    def loss(kernels, x, first):
        wanted = jax.nn.one_hot(first, experts) * 2 + jax.nn.one_hot((first + 1) % experts, experts)
        routing = route(9 * wanted, jnp.eye(experts), k)
        y, kept = spread.mix(
            Experts(lambda kernels, key, rows, numbers, dot: dot(rows, kernels["w"]), kernels),
            {"w": ("expert", "embed", None)},
            x,
            routing,
            valid,
        )
        return jnp.sum(jnp.sin(y)), kept

    function = jax.value_and_grad(loss, (0, 1), has_aux=True)
    whole, rows = replicated(mesh), batch_sharding(mesh)
    kernel = {"w": NamedSharding(mesh, PartitionSpec("expert"))}

    def on_mesh(*arguments):
        with using(mesh):
            return function(*arguments)

    def placed(first):
        return jax.device_put((kernels, x, first), (kernel, rows, rows))

    many = jax.jit(on_mesh, out_shardings=((whole, rows), (kernel, rows)), compiler_options=QUICK)
    program = many.lower(*placed(turn)).compile()
    alone = jax.jit(function, compiler_options=QUICK)
    for first, tier in ((turn % experts, 0), (crowded, 1)):
        queues = [
            enqueue(jnp.stack([rows, (rows + 1) % experts], axis=1), ok, experts)
            for rows, ok in zip(first.reshape(4, -1), valid.reshape(4, -1), strict=True)
        ]
        assert [int(queue.longest > 64) for queue in queues] == [tier, 0, 0, 0]
        found, wanted = program(*placed(first)), alone(kernels, x, first)
        chex.assert_trees_all_close(jax.device_get(found), jax.device_get(wanted), atol=1e-4)
    moved = [shape for kind, shape in collectives(program) if kind == "all-to-all"]
    assert moved
    # Slots of two experts, from one device or two; nothing more moves, and nothing is gathered.
    sizes = {2 * slots * devices * D for slots in (64, 100) for devices in (1, 2)}
    assert {math.prod(shape) for shape in moved} <= sizes
    assert "all-gather" not in {kind for kind, _ in collectives(program)}


def test_what_a_capacity_drops_is_what_one_device_drops():
    # 12 tokens want expert 0, and ceil(0.5 * 12 / 2) = 3 of them find a place: the first.
    x, valid = jnp.ones((12, D)), jnp.arange(12) != 1
    routing = route(x, jnp.eye(D)[:, :2].at[:, 0].add(1.0), 1)

    def run(x):
        return spread.mix(
            Experts(lambda kernels, key, rows, numbers, dot: rows, {}),
            {},
            x,
            routing,
            valid,
            capacity_factor=0.5,
        )

    mesh = make_mesh(MeshConfig(data=4), jax.devices()[:4])
    with using(mesh):
        y, kept = jax.jit(run, compiler_options=QUICK)(jax.device_put(x, replicated(mesh)))
    np.testing.assert_array_equal(kept[:, 0], [1, 0, 1, 1] + [0] * 8)
    np.testing.assert_array_equal(y[:, 0], kept[:, 0].astype(np.float32))
    assert float(dispatch.dropped(kept, valid)) == pytest.approx(8 / 11)


DEALT, CUT = MeshConfig(data=2, expert=4), MeshConfig(data=4, tensor=2)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        (DEALT, {"num_experts": 6}, "mesh.expert 4 does not divide the 6 experts of a mixture la"),
        (DEALT, {"dispatch": "ragged"}, "is ragged, which sends no rows .* set model.moe.dispatch"),
        (
            DEALT,
            {"dispatch": "in_turn"},
            "is in_turn, which sends no rows .* set model.moe.dispatch",
        ),
        (CUT, {"dispatch": "in_turn"}, "is in_turn, which multiplies with whole kernels, but mesh"),
        (CUT, {"dispatch": "grouped"}, "multiplies with whole kernels, but mesh.tensor is 2; set"),
    ],
)
def test_experts_that_cannot_be_dealt_out_are_refused_in_one_line(sizes, options, message):
    function, params = layer(MoEConfig(**{"num_experts": 8} | options))
    mesh = make_mesh(sizes)
    with using(mesh), pytest.raises(UserError, match=message) as error:
        jax.eval_shape(function, params, jnp.ones((8, 3, D)), jnp.ones((8, 3), bool))
    assert "\n" not in str(error.value)
