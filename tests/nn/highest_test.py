"""The place of the highest score: what argmax says, also where several are equal."""

import chex
import jax
import jax.numpy as jnp
import pytest

from moemoe_jax.nn.highest import highest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_place_and_score_are_those_of_argmax(dtype):
    # In bfloat16 thousands of scores share a few hundred values: many rows have several highest.
    scores = jax.random.normal(jax.random.key(0), (3, 50, 2000)).astype(dtype)
    place, best = jax.jit(highest)(scores)
    chex.assert_trees_all_equal(place, jnp.argmax(scores, axis=-1).astype(jnp.int32))
    chex.assert_trees_all_equal(best, jnp.max(scores, axis=-1))


def test_the_first_of_equals_and_a_place_that_is_there_without_numbers():
    rows = jnp.array([[1.0, 3.0, 3.0], [-jnp.inf] * 3, [jnp.nan] * 3])
    place, _ = highest(rows)
    assert place[:2].tolist() == [1, 0]
    assert int(place[2]) == 2
