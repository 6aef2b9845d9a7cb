import chex
from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from moemoe_jax.nn.feed_forward import FeedForward
from moemoe_jax.nn.moe import MoEConfig, MoEFeedForward
from moemoe_jax.nn.upcycle import upcycle_feed_forward

D, F = 8, 12


def upcycled(config, activation, **kwargs):
    """A dense block, and the mixture that it becomes."""
    dense = FeedForward(D, F, activation, rngs=nnx.Rngs(0))
    moe = MoEFeedForward(config, D, F, activation, rngs=nnx.Rngs(1))
    params = nnx.to_pure_dict(nnx.state(dense, nnx.Param))
    nnx.update(moe, upcycle_feed_forward(params, config.num_experts, **kwargs))
    return dense, moe


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
@pytest.mark.parametrize("back_end", ["auto", "index", "dense", "ragged", "grouped"])
@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (3, 1)])
def test_right_after_upcycling_the_mixture_equals_the_dense_block(
    activation, back_end, experts, top_k
):
    config = MoEConfig(num_experts=experts, top_k=top_k, dispatch=back_end, router_std=1.0)
    dense, moe = upcycled(config, activation)
    x = jax.random.normal(jax.random.key(2), (2, 5, D))
    chex.assert_trees_all_close(moe(x, jnp.ones((2, 5), bool))[0], dense(x), atol=1e-6)


def test_copies_by_hand():
    stacked = upcycle_feed_forward({"wi": {"kernel": jnp.array([[1.0, 2.0]])}}, 3)
    expected = {"wi": {"kernel": jnp.array([[[1.0, 2.0]]] * 3)}}
    chex.assert_trees_all_equal(stacked, expected)


def test_noise_is_relative_and_differs_between_experts_and_arrays():
    dense = {
        "wi": 10.0 * jax.random.normal(jax.random.key(0), (50, 40)),
        "wo": jax.random.normal(jax.random.key(0), (50, 40), jnp.bfloat16),
    }
    noisy = upcycle_feed_forward(dense, 4, noise=0.01, key=jax.random.key(1))
    added = noisy["wi"] - dense["wi"]
    # A hundredth of 10; 8000 draws know their deviation to 0.8 %.
    chex.assert_trees_all_close(added.std(), jnp.float32(0.1), rtol=0.05)
    assert float(jnp.abs(added[0] - added[1]).min()) > 0
    assert noisy["wo"].dtype == jnp.bfloat16


def test_identical_experts_give_the_router_no_task_gradient_and_noise_does():
    x = jax.random.normal(jax.random.key(2), (1, 6, D))

    def router_gradient(**kwargs):
        _, moe = upcycled(MoEConfig(router_std=1.0), "relu", **kwargs)
        graph, params = nnx.split(moe)
        loss = lambda p: jnp.sum(jnp.sin(nnx.merge(graph, p)(x, jnp.ones((1, 6), bool))[0]))  # noqa: E731
        return float(jnp.abs(jax.grad(loss)(params).router.kernel[...]).max())

    assert router_gradient() < 1e-6
    assert router_gradient(noise=0.1, key=jax.random.key(0)) > 1e-3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_experts": 2, "noise": 0.1}, "noise 0.1 needs a key"),
        ({"num_experts": 0}, "num_experts 0 must be at least 1"),
        ({"num_experts": 2, "noise": -1.0}, "noise -1.0 at least 0"),
    ],
)
def test_mistakes_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        upcycle_feed_forward({"wi": jnp.ones((2, 2))}, **kwargs)
