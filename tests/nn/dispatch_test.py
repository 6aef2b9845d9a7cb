import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.nn import dispatch
from moemoe_jax.nn.dispatch import DISPATCHERS, choose, combine, mix
from moemoe_jax.nn.experts import Experts
from moemoe_jax.nn.queues import capacity_tiers, enqueue
from moemoe_jax.nn.routing import route
from moemoe_jax.parallel.axes import using
from moemoe_jax.parallel.mesh import AXES

D, F, E, K = 5, 7, 8, 2


def problem(tokens, skew=0.0, seed=0):
    """Random tokens and kernels; `skew` pulls all tokens to expert 0."""
    keys = jax.random.split(jax.random.key(seed), 4)
    x = jax.random.normal(keys[0], (tokens, D))
    params = {
        "router": jax.random.normal(keys[1], (D, E)),
        "wi": jax.random.normal(keys[2], (E, D, F)),
        "wo": jax.random.normal(keys[3], (E, F, D)),
    }
    bias = skew * jax.nn.one_hot(0, E)
    return params, x, bias


def moe(params, x, valid, bias=0.0, **kwargs):
    """A mixture of relu experts, routed by x W + bias: ([T, D], dropped)."""
    routing = route(x @ params["router"] + bias, jnp.eye(E), K)

    def run(kernels, key, rows, numbers, dot):
        return dot(jax.nn.relu(dot(rows, kernels["wi"])), kernels["wo"])

    kernels = {name: params[name] for name in ("wi", "wo")}
    y, kept = mix(Experts(run, kernels), x, routing, valid, **kwargs)
    return y, dispatch.dropped(kept, valid)


def slow_moe(params, x, valid, bias=0.0, kept=None):
    """The same, one token and one choice after another."""
    rows = []
    for t in range(len(x)):
        logits = x[t] @ params["router"] + bias
        order = jnp.argsort(-logits)[:K]
        weights = jax.nn.softmax(logits[order])
        y = jnp.zeros(D)
        for j in range(K):
            if valid[t] and (kept is None or kept[t][j]):
                expert = order[j]
                hidden = jax.nn.relu(x[t] @ params["wi"][expert])
                y += weights[j] * (hidden @ params["wo"][expert])
        rows.append(y)
    return jnp.stack(rows)


def value_and_grad(params, x, valid, bias=0.0, **kwargs):
    def loss(params, x):
        y, dropped = moe(params, x, valid, bias, **kwargs)
        return jnp.sum(jnp.sin(y)), (y, dropped)

    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    return outputs, gradients


def test_queue_and_plan_by_hand():
    # Token 0 chooses experts (1, 0), 1 is padding, 2 chooses (1, 2), 3 chooses (0, 1).
    chosen = jnp.array([[1, 0], [1, 0], [1, 2], [0, 1]])
    valid = jnp.array([True, False, True, True])
    queue = enqueue(chosen, valid, 3)
    # Expert 1 sees tokens 0, 2, 3 in that order; expert 0 sees 0, 3.
    chex.assert_trees_all_equal(queue.position[valid], jnp.array([[0, 0], [1, 0], [1, 2]]))
    chex.assert_trees_all_equal(queue.load, jnp.array([2, 3, 1]))
    x = jnp.array([[1.0], [9.0], [2.0], [3.0]])
    inputs, plan = dispatch.dispatch(x, queue, 3)
    expected = [[1.0, 3.0, 0.0], [1.0, 2.0, 3.0], [2.0, 0.0, 0.0]]
    chex.assert_trees_all_equal(inputs[..., 0], jnp.array(expected))
    # Expert e multiplies by 10^e: 1 * (.5 * 10 + .5 * 1), 0, 2 * (.5 * 10 + .5 * 100), ...
    outputs = inputs * jnp.array([1.0, 10.0, 100.0])[:, None, None]
    y = combine(outputs, plan, jnp.full((4, 2), 0.5))
    chex.assert_trees_all_close(y[:, 0], jnp.array([5.5, 0.0, 110.0, 16.5]))


def test_every_back_end_is_exercised_here():
    assert set(DISPATCHERS) == {"index", "dense", "ragged", "grouped", "in_turn"}


@pytest.mark.parametrize("backend", ["auto", *DISPATCHERS])
def test_back_ends_equal_the_slow_loop_in_value_and_gradient(backend):
    params, x, _ = problem(9)
    valid = jnp.arange(9) != 4
    (y, dropped), gradients = value_and_grad(params, x, valid, backend=backend)
    expected = jax.grad(lambda p, x: jnp.sum(jnp.sin(slow_moe(p, x, valid))), (0, 1))(params, x)
    chex.assert_trees_all_close(y, slow_moe(params, x, valid), atol=1e-5)
    chex.assert_trees_all_close(gradients, expected, atol=1e-5)
    assert dropped == 0.0


@pytest.mark.parametrize(
    # The first tokens, so many, choose experts 0 and 1; the others take turns: 32 per expert.
    ("partial", "tier"),
    [(0, 0), (50, 1), (128, 2)],
)
def test_each_tier_is_taken_and_equals_the_oracle_in_value_and_gradient(partial, tier):
    params, x, _ = problem(128)
    params["router"] = params["router"] * 0.1
    # Scaled as a layer's are: outputs of order 1, for which the bound below is meant.
    params["wi"], params["wo"] = params["wi"] * D**-0.5, params["wo"] * F**-0.5
    turn = jnp.arange(128)
    first = jnp.where(turn < partial, 0, turn % E)
    bias = 9.0 * (jax.nn.one_hot(first, E) + jax.nn.one_hot((first + 1) % E, E))
    valid = turn != 7
    load = enqueue(jnp.stack([first, (first + 1) % E], axis=1), valid, E).load.max()
    assert sum(int(load) > size for size in capacity_tiers(128, K, E)[:-1]) == tier
    dense = value_and_grad(params, x, valid, bias, backend="dense")
    for backend in ("index", "in_turn"):
        found = value_and_grad(params, x, valid, bias, backend=backend)
        chex.assert_trees_all_close(found, dense, atol=1e-5, rtol=1e-5)


def test_all_but_the_first_tier_keep_nothing_for_the_backward_pass():
    params, x, _ = problem(128)
    function = functools.partial(moe, valid=jnp.ones(128, bool), backend="index")
    _, backward = jax.vjp(lambda p, x: function(p, x)[0], params, x)
    shapes = {leaf.shape for leaf in jax.tree.leaves(backward)}
    assert any(40 in shape for shape in shapes)
    assert not any(80 in shape or (E in shape and 128 in shape and F in shape) for shape in shapes)


@pytest.mark.parametrize("backend", DISPATCHERS)
def test_drops_are_counted_and_contribute_nothing(backend):
    params, x, bias = problem(16, skew=50.0)
    valid = jnp.arange(16) < 12
    # ceil(1.0 * 2 * 12 / 8) = 3 slots; all 12 tokens choose expert 0 first: 9 of 24 drop there.
    logits = x @ params["router"] + bias
    chosen = jax.lax.top_k(logits, K)[1]
    queue = enqueue(chosen, valid, E, 1.0)
    assert int(queue.load[0]) == 3
    (y, dropped), gradients = value_and_grad(
        params, x, valid, bias, backend=backend, capacity_factor=1.0
    )
    kept = np.asarray(queue.kept)
    chex.assert_trees_all_close(dropped, jnp.float32(1 - kept.sum() / 24), atol=1e-6)
    assert dropped >= 9 / 24
    chex.assert_trees_all_close(y, slow_moe(params, x, valid, bias, kept), atol=1e-5)
    expected = jax.grad(lambda p, x: jnp.sum(jnp.sin(slow_moe(p, x, valid, bias, kept))), (0, 1))(
        params, x
    )
    chex.assert_trees_all_close(gradients, expected, atol=1e-5)


@pytest.mark.parametrize("capacity_factor", [None, 0.5, 1.1])
@pytest.mark.parametrize("backend", DISPATCHERS)
def test_padding_equals_compaction_in_value_and_gradient(backend, capacity_factor):
    params, x, _ = problem(12)
    valid = jnp.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1], bool)
    kwargs = {"backend": backend, "capacity_factor": capacity_factor}
    padded, (dp, dx) = value_and_grad(params, x.at[~valid].set(7.0), valid, **kwargs)
    compact, (cp, cx) = value_and_grad(params, x[valid], jnp.ones(8, bool), **kwargs)
    chex.assert_trees_all_close((padded[0][valid], padded[1]), compact, atol=1e-6)
    chex.assert_trees_all_close((dp, dx[valid]), (cp, cx), atol=1e-5)
    chex.assert_trees_all_equal(padded[0][~valid], jnp.zeros((4, D)))
    chex.assert_trees_all_equal(dx[~valid], jnp.zeros((4, D)))


@pytest.mark.parametrize("capacity_factor", [None, 0.5])
@pytest.mark.parametrize("backend", DISPATCHERS)
def test_later_tokens_change_nothing_earlier(backend, capacity_factor):
    params, x, _ = problem(10)
    kwargs = {"backend": backend, "capacity_factor": capacity_factor}
    valid = jnp.ones(10, bool)
    before, _ = moe(params, x, valid, **kwargs)
    after, _ = moe(params, x.at[6:].set(-3.0 * x[6:]), valid, **kwargs)
    chex.assert_trees_all_close(before[:6], after[:6], atol=1e-6)
    assert float(jnp.abs(before[6:] - after[6:]).max()) > 0.1


@pytest.mark.parametrize("backend", DISPATCHERS)
def test_a_row_is_numbered_by_its_token_and_expert(backend):
    params, x, _ = problem(12)
    valid = jnp.arange(12) != 5
    routing = route(x @ params["router"], jnp.eye(E), K)

    def run(kernels, key, rows, numbers, dot):
        return jnp.broadcast_to(numbers[..., None], rows.shape).astype(jnp.float32)

    y, _ = mix(Experts(run, {}), x, routing, valid, backend=backend)
    numbers = jnp.arange(12)[:, None] * E + routing.experts
    mean = jnp.sum(numbers * routing.weights, axis=1) * valid
    chex.assert_trees_all_close(y, jnp.broadcast_to(mean[:, None], y.shape), rtol=1e-5)


@pytest.mark.parametrize("tokens", [6, 128])
@pytest.mark.parametrize("backend", DISPATCHERS)
def test_nothing_but_padding_is_zero_with_zero_gradients(backend, tokens):
    params, x, _ = problem(tokens)
    outputs, gradients = value_and_grad(params, x, jnp.zeros(tokens, bool), backend=backend)
    zeros = jax.tree.map(jnp.zeros_like, (outputs, gradients))
    chex.assert_trees_all_equal((outputs, gradients), zeros)


def on_devices(platform, sizes):
    """A mesh of devices that are not there."""
    device = jax.sharding.AbstractDevice(device_kind="any", num_cores=1, platform=platform)
    return using(jax.sharding.AbstractMesh(sizes, AXES, abstract_device=device))


def test_auto_follows_the_devices_that_a_program_is_for():
    assert choose("auto", (40, 80, 128), 128) == "in_turn"
    for kind, sizes, best in (
        ("tpu", (4, 2, 1, 1), "grouped"),
        ("tpu", (4, 2, 2, 1), "index"),  # experts on several devices
        ("tpu", (4, 2, 1, 2), "index"),  # parts of experts
        ("cpu", (4, 2, 1, 1), "in_turn"),
        ("cpu", (4, 2, 2, 1), "index"),
        ("cpu", (4, 2, 1, 2), "index"),
        ("gpu", (4, 2, 1, 1), "index"),
    ):
        with on_devices(kind, sizes):
            assert choose("auto", (40, 80, 128), 128) == best
            assert choose("auto", (64,), 64) == "dense"
            assert choose("ragged", (40, 80, 128), 128) == "ragged"


def test_an_unknown_back_end_is_refused():
    params, x, _ = problem(4)
    with pytest.raises(ValueError, match="unknown dispatch back end 'mail': use one of index, den"):
        moe(params, x, jnp.ones(4, bool), backend="mail")
