import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.nn import rows

# Rows 1 2 | 3 4 5 of two sources stand for six tokens.
ROWS = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("repeat", "spread", "fold"),
    [
        ("tile", [1, 2, 3, 1, 2, 3], [10 + 13, 11 + 14, 12 + 15]),
        ("interleave", [1, 1, 2, 2, 3, 3], [10 + 11, 12 + 13, 14 + 15]),
        ("pad", [1, 2, 3, 0, 0, 0], [10, 11, 12]),
        ((1, 3, 2), [1, 2, 2, 2, 3, 3], [10, 11 + 12 + 13, 14 + 15]),
    ],
)
def test_rows_fill_tokens_as_told(repeat, spread, fold):
    found = rows.repeat_of(repeat).spread(jnp.array([[1.0, 2.0, 3.0]]), 6)
    chex.assert_trees_all_equal(found, jnp.array([spread], jnp.float32))
    found = rows.repeat_of(repeat).fold(jnp.arange(10.0, 16.0)[None], 3)
    chex.assert_trees_all_equal(found, jnp.array([fold], jnp.float32))


def test_every_repeat_is_tried_above_and_keeps_what_fits():
    assert set(rows.REPEATS) == {"tile", "interleave", "pad"}
    for spread, fold in rows.REPEATS.values():
        chex.assert_trees_all_equal(spread(ROWS, 5), ROWS)
        chex.assert_trees_all_equal(fold(ROWS, 5), ROWS)


def test_the_weighted_sum_of_two_sources_by_hand():
    spans = ((2, "tile"), (3, "interleave"))
    weights = jnp.array([[1.0, 1.0, 1.0, 1.0, 2.0, 2.0], [0.0, 1.0, 0.0, 1.0, 0.0, 10.0]])
    # 1 2 1 2 2·1 2·2, and of 3 3 4 4 5 5 every other.
    expected = jnp.array([1.0, 2 + 3.0, 1.0, 2 + 4.0, 2.0, 4 + 50.0])
    chex.assert_trees_all_equal(rows.spread(ROWS, weights, spans, 6), expected)
    chex.assert_trees_all_equal(
        rows.spread(ROWS, None, spans, 6), jnp.array([1 + 3.0, 2 + 3, 1 + 4, 2 + 4, 1 + 5, 2 + 5])
    )
    # Tokens of one: row 1 has weights 1 + 1 + 2, row 2 the same, rows 3 to 5 have 1, 1 and 10.
    folded = rows.fold(jnp.ones(6), weights, spans)
    chex.assert_trees_all_equal(folded, jnp.array([4.0, 4.0, 1.0, 1.0, 10.0]))


@pytest.mark.parametrize("repeat", [*rows.REPEATS, (1, 7)])
def test_folding_is_the_transpose_of_spreading(repeat):
    spans = ((2, repeat), (4, "pad"), (8, "tile"))
    keys = jax.random.split(jax.random.key(0), 3)
    weights = jax.random.normal(keys[0], (3, 8))
    x, y = jax.random.normal(keys[1], (5, 14)), jax.random.normal(keys[2], (5, 8))
    _, transpose = jax.vjp(lambda x: rows.spread(x, weights, spans, 8), x)
    chex.assert_trees_all_close(rows.fold(y, weights, spans), transpose(y)[0], atol=1e-6)
    _, back = jax.vjp(lambda y: rows.fold(y, weights, spans), y)
    chex.assert_trees_all_close(rows.spread(x, weights, spans, 8), back(x)[0], atol=1e-6)


def test_rows_of_several_sources_stand_one_after_the_other():
    first, second = np.ones((2, 3, 4)), np.zeros((2, 1, 4))
    joined = rows.join([jnp.array(first), jnp.array(second)], ["tile", "pad"])
    assert joined.spans == ((3, "tile"), (1, "pad"))
    chex.assert_trees_all_equal(joined.values, np.concatenate([first, second], axis=1))
    cut = rows.parts(jnp.swapaxes(joined.values, 1, 2), joined.spans)
    chex.assert_trees_all_equal([c.shape for c in cut], [(2, 4, 3), (2, 4, 1)])
