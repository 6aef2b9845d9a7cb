import jax.numpy as jnp
import numpy as np
import pytest

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

    def experts(rows, numbers, dot):
        return dot(rows, kernels) + 10.0 * numbers[:, None]

    found = np.asarray(in_turn(experts, inputs, numbers, load, (0, 8, 12, 20)))[..., 0]
    for expert, size in enumerate((0, 8, 8, 12, 20)):
        np.testing.assert_array_equal(found[expert, :size], expert + 1 + 10.0 * np.arange(size))
        assert not found[expert, size:].any()
