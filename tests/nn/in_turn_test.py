import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.nn.dispatch import batched_dot
from moemoe_jax.nn.experts import Experts
from moemoe_jax.nn.in_turn import in_turn, sizes_for


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "sizes"),
    [
        (128, 2, 8, (0, 24, 32, 48, 64, 88, 128)),  # a mean of 32: none of 16 or fewer
        (608, 2, 8, (0, 88, 128, 184, 272, 408, 608)),
        (9, 2, 8, (0, 8, 9)),
        (4, 1, 4, (0, 4)),
    ],
)
def test_sizes_go_from_half_the_mean_queue_to_all_tokens(tokens, top_k, experts, sizes):
    assert sizes_for(tokens, top_k, experts) == sizes


def test_each_expert_runs_on_the_least_size_that_holds_its_queue():
    load = jnp.array([0, 3, 8, 9, 20])
    inputs = jnp.ones((5, 20, 2))
    numbers = jnp.broadcast_to(jnp.arange(20), (5, 20))
    kernels = jnp.arange(1.0, 6.0)[:, None, None] * jnp.eye(2)

    def run(kernels, key, rows, numbers, dot):
        return dot(rows, kernels["w"]) + 10.0 * numbers[:, None]

    experts = Experts(run, {"w": kernels})
    found = np.asarray(in_turn(experts, inputs, numbers, load, (0, 8, 12, 20)))[..., 0]
    for expert, size in enumerate((0, 8, 8, 12, 20)):
        np.testing.assert_array_equal(found[expert, :size], expert + 1 + 10.0 * np.arange(size))
        assert not found[expert, size:].any()


def test_gradients_are_those_of_all_experts_on_all_rows():
    load, sizes = jnp.array([0, 3, 9, 20]), (0, 8, 12, 20)
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = jax.random.normal(keys[0], (4, 20, 3))
    along = jax.random.normal(keys[1], (4, 20, 3))
    kernels = {
        "wi": jax.random.normal(keys[2], (4, 3, 5)),
        "wo": jax.random.normal(keys[3], (4, 5, 3)),
    }
    numbers = jnp.arange(80).reshape(4, 20)
    within = jnp.arange(20) < jnp.array(sizes)[:, None]  # each load needs a size of its own

    def run(kernels, key, rows, numbers, dot):
        hidden = (
            dot(jnp.tanh(rows), kernels["wi"])
            * jax.random.uniform(key)
            * jnp.cos(numbers)[..., None]
        )
        return dot(hidden, kernels["wo"])

    def turns(kernels, inputs):
        return in_turn(Experts(run, kernels, jax.random.key(1)), inputs, numbers, load, sizes)

    def everyone(kernels, inputs):
        outputs = run(kernels, jax.random.key(1), inputs, numbers, batched_dot)
        return jnp.where(within[..., None], outputs, 0.0)

    def outcome(function):
        value, pull = jax.vjp(function, kernels, inputs)
        return value, pull(along)

    chex.assert_trees_all_close(outcome(turns), outcome(everyone), atol=1e-5)
