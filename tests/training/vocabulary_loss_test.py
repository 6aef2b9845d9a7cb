"""The loss over the vocabulary: by hand, as PyTorch has it, and in any chunks like all at once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from moemoe_jax.training.vocabulary_loss import vocabulary_loss

LOGITS = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]]))


def test_by_hand():
    # The scores are the hidden states themselves; a shift of them changes no softmax.
    targets, weights = jnp.array([[1, 2]]), jnp.array([[1.0, 0.5]])
    loss, best = vocabulary_loss(LOGITS + 7.0, jnp.eye(3), targets, weights)
    chex.assert_trees_all_close(loss, jnp.float32(np.log(4) + 0.5 * np.log(4 / 3)), atol=1e-6)
    assert best.tolist() == [[0, 2]]


def test_label_smoothing_by_hand():
    # Target (0.3 / 3, 0.7 + 0.3 / 3, 0.3 / 3) against (1/2, 1/4, 1/4).
    by_hand = 0.1 * np.log(2) + 0.8 * np.log(4) + 0.1 * np.log(4)
    loss, _ = vocabulary_loss(LOGITS, jnp.eye(3), jnp.array([[1, 2]]), jnp.array([[1.0, 0.0]]), 0.3)
    chex.assert_trees_all_close(loss, jnp.float32(by_hand), atol=1e-6)


P, T, D, V = 2, 5, 4, 7


@functools.cache
def example(dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = (2 * jax.random.normal(keys[0], (P, T, D))).astype(dtype)
    kernel = jax.random.normal(keys[1], (D, V)).astype(dtype)
    targets = jax.random.randint(keys[2], (P, T), 0, V)
    weights = jax.random.uniform(keys[3], (P, T)).at[0, 1].set(0.0)
    return hidden, kernel, targets, weights


def value_and_gradients(dtype="float32", **options):
    hidden, kernel, targets, weights = example(dtype)

    def loss(hidden, kernel):
        return 3.0 * vocabulary_loss(hidden, kernel, targets, weights, **options)[0]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden, kernel)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_value_and_gradients_are_those_of_pytorch(smoothing):
    hidden, kernel, targets, weights = (torch.tensor(np.array(x)) for x in example())
    hidden.requires_grad_(), kernel.requires_grad_()
    nll = torch.nn.functional.cross_entropy(
        (hidden @ kernel).reshape(-1, V),
        targets.long().reshape(-1),
        label_smoothing=smoothing,
        reduction="none",
    )
    loss = 3.0 * (nll * weights.reshape(-1)).sum()
    loss.backward()
    expected = loss.detach().numpy(), (hidden.grad.numpy(), kernel.grad.numpy())
    found = value_and_gradients(smoothing=smoothing)
    chex.assert_trees_all_close(jax.tree.map(np.array, found), expected, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_chunks_are_like_all_at_once(chunk):
    whole = value_and_gradients(smoothing=0.1)
    chex.assert_trees_all_close(
        value_and_gradients(smoothing=0.1, chunk_scores=chunk * V), whole, atol=1e-5
    )
    best = [vocabulary_loss(*example(), chunk_scores=size * V)[1] for size in (chunk, T)]
    chex.assert_trees_all_equal(*best)


@pytest.mark.parametrize("chunk", [2, 5])
def test_bfloat16_is_summed_in_float32(chunk):
    loss, gradients = value_and_gradients("bfloat16", chunk_scores=chunk * V)
    chex.assert_type([loss, *gradients], [jnp.float32, jnp.bfloat16, jnp.bfloat16])
    exact, _ = value_and_gradients()
    chex.assert_trees_all_close(loss, exact, rtol=1e-2)  # the inputs are rounded, nothing else


def test_what_is_not_differentiated_costs_no_product():
    hidden, kernel, targets, weights = example()

    def products(function, *arguments):
        return str(jax.make_jaxpr(function)(*arguments)).count("dot_general")

    def loss(hidden, kernel):
        return vocabulary_loss(hidden, kernel, targets, weights)[0]

    assert products(loss, hidden, kernel) == 1
    assert products(jax.grad(lambda h: loss(h, kernel)), hidden) == 2
    assert products(jax.grad(loss, argnums=(0, 1)), hidden, kernel) == 3


def test_the_scores_of_all_positions_are_never_there_together():
    hidden, kernel, targets, weights = example()

    def loss(hidden, kernel):
        return vocabulary_loss(hidden, kernel, targets, weights, chunk_scores=2 * V)[0]

    text = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(hidden, kernel))
    assert f"f32[{P},2,{V}]" in text and f"f32[{P},{T},{V}]" not in text


def test_chunks_of_positions_without_weight_are_left_out():
    hidden, kernel, targets, _ = example()
    weights = jnp.array([[0.0, 1.0, 0.0, 0.0, 2.0]] * P)
    poisoned = jnp.where(weights[..., None] == 0, jnp.nan, hidden)  # would be in any sum

    def loss(hidden, kernel):
        return vocabulary_loss(hidden, kernel, targets, weights, chunk_scores=2 * V)

    value_and_gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (expected, best), gradients = value_and_gradient(hidden, kernel)
    (found, at), others = value_and_gradient(poisoned, kernel)
    chex.assert_trees_all_close((found, others), (expected, gradients), atol=1e-6)
    chex.assert_trees_all_equal(at[weights > 0], best[weights > 0])
