import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from moemoe_jax.nn.attention import (
    CrossAttention,
    KVCache,
    RelativeBias,
    SelfAttention,
    add_shared,
    masked_softmax,
)
from moemoe_jax.nn.rows import join

REPEATS = ("interleave", "tile", "pad")


def test_masked_softmax_by_hand():
    # exp(0) : exp(ln 3) = 1 : 3 over the two entries that count.
    scores = jnp.array([[0.0, jnp.log(3.0), 9.0]])
    weights = masked_softmax(scores, jnp.array([[True, True, False]]))
    chex.assert_trees_all_close(weights, jnp.array([[0.25, 0.75, 0.0]]), atol=1e-6)


def test_a_row_without_an_entry_is_zero_and_has_a_zero_gradient():
    mask = jnp.zeros((1, 2), bool)
    value, gradient = jax.value_and_grad(lambda s: masked_softmax(s, mask).sum())(jnp.ones((1, 2)))
    chex.assert_trees_all_equal((value, gradient), (0.0, jnp.zeros((1, 2))))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 20), (8, 100)])
def test_every_distance_falls_into_pytorchs_bucket(bidirectional, buckets, distance):
    bias = RelativeBias(
        buckets, distance, 1, bidirectional=bidirectional, stddev=1.0, rngs=nnx.Rngs(0)
    )
    bias.table[...] = jnp.arange(buckets, dtype=jnp.float32)[:, None]
    got = bias(jnp.array([150]), jnp.arange(300))[0, 0]
    expected = T5Attention._relative_position_bucket(
        torch.arange(300) - 150, bidirectional, buckets, distance
    )
    chex.assert_trees_all_equal(np.array(got, int), expected.numpy())


def cross_problem():
    """2 products x 3 questions, 3 sources of 6 tokens, answers of 4, some positions invalid."""
    keys = jax.random.split(jax.random.key(0), 3)
    layer = CrossAttention(16, heads=2, head_dim=4, rngs=nnx.Rngs(0))
    x = jax.random.normal(keys[0], (2, 3, 4, 16))
    sources = [jax.random.normal(keys[1], (2, n, 16)) for n in (3, 2, 5)]
    weights = jax.random.normal(keys[2], (2, 3, 3, 6))
    valid = jnp.arange(6) < jnp.array([[6, 3, 2], [1, 6, 4]])[..., None]
    return layer, x, sources, weights, valid


def literal(layer, x, sources, weights, valid):
    """Each question's own memory, e_k = sum_s w_sk S_sk, projected and attended to."""
    neighbours, tiles, text = sources
    tokens = (
        jnp.repeat(neighbours, 2, axis=1),
        jnp.concatenate([tiles] * 3, axis=1),
        jnp.concatenate([text, jnp.zeros((2, 1, 16))], axis=1),
    )
    fused = jnp.einsum("pqsk,pskd->pqkd", weights, jnp.stack(tokens, axis=1)).reshape(6, 6, 16)
    memory = layer.project(join([fused], ["pad"]))
    y = layer(x.reshape(6, 1, 4, 16), memory, None, valid.reshape(6, 1, 6))
    return y.reshape(x.shape)


def shared(layer, x, sources, weights, valid):
    return layer(x, layer.project(join(sources, REPEATS)), weights, valid)


def test_shared_keys_and_values_equal_the_literal_memory():
    layer, *inputs, valid = cross_problem()
    graph, state = nnx.split(layer)

    def outcome(path):
        def loss(state, *inputs):
            y = path(nnx.merge(graph, state), *inputs, valid)
            return jnp.sum(jnp.sin(y)), y

        gradient = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
        return jax.jit(gradient)(state, *inputs)

    chex.assert_trees_all_close(outcome(shared), outcome(literal), atol=1e-5, rtol=1e-5)


def test_without_weights_the_sources_are_added_up():
    layer, x, sources, weights, valid = cross_problem()
    ones = jnp.ones_like(weights)
    memory = layer.project(join(sources, REPEATS))
    assert memory.keys.shape == (2, 2, 4, 10)  # ten rows for the eighteen tokens of a product
    expected = literal(layer, x, sources, ones, valid)
    chex.assert_trees_all_close(layer(x, memory, None, valid), expected, atol=1e-5)
    chex.assert_trees_all_close(layer(x, memory, ones, valid), expected, atol=1e-5)


def test_cross_attention_to_nothing_is_zero_with_a_finite_gradient():
    layer, x, sources, weights, valid = cross_problem()
    nothing = jnp.zeros_like(valid)
    gradient = jax.grad(lambda s: jnp.sum(shared(layer, x, s, weights, nothing)))(sources)
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, sources))
    chex.assert_trees_all_equal(shared(layer, x, sources, weights, nothing), jnp.zeros_like(x))


def test_the_cache_holds_what_earlier_positions_projected():
    layer = SelfAttention(16, heads=2, head_dim=4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 4, 16))
    positions = jnp.arange(4)
    mask = positions <= positions[:, None]
    whole, none = layer(x, jnp.zeros((2, 4, 4)), mask)
    assert none is None
    zeros = jnp.zeros((3, 2, 6, 4))
    cache, rows = KVCache(zeros, zeros), []
    for i in range(4):
        seen = (jnp.arange(6) <= i)[None]
        bias = jnp.zeros((2, 1, 6))
        y, cache = layer(x[:, i : i + 1], bias, seen, cache=cache, start=i)
        rows.append(y)
    chex.assert_trees_all_close(jnp.concatenate(rows, 1), whole, atol=1e-6)
    chex.assert_trees_all_equal(cache.keys[:, :, 4:], jnp.zeros((3, 2, 2, 4)))


def test_a_shared_bias_is_added_with_its_gradient():
    # Two rows of two queries and three keys: the bias's gradient is the sum of the rows'.
    scores = jnp.arange(24.0).reshape(2, 2, 2, 3)
    bias = jnp.arange(12.0).reshape(2, 2, 3)
    probe = jax.random.normal(jax.random.key(0), scores.shape)
    value, (by_scores, by_bias) = jax.value_and_grad(
        lambda s, b: jnp.sum(add_shared(s, b) * probe), argnums=(0, 1)
    )(scores, bias)
    np.testing.assert_allclose(value, np.sum((scores + bias[None]) * probe), rtol=1e-6)
    chex.assert_trees_all_close(by_scores, probe)
    chex.assert_trees_all_close(by_bias, probe[0] + probe[1], rtol=1e-6)
