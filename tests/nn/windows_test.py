import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.nn import windows


def test_partition_by_hand():
    # 0 1 | 2 3        windows of 2 x 2, row by row
    # 4 5 | 6 7
    rows = jnp.arange(8.0).reshape(1, 2, 4, 1)
    expected = jnp.array([[0, 1, 4, 5], [2, 3, 6, 7]], jnp.float32)
    chex.assert_trees_all_equal(windows.partition(rows, 2)[0, ..., 0], expected)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_join_undoes_partition(window):
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 3))
    chex.assert_trees_all_equal(windows.join(windows.partition(x, window), 4, 8), x)


def test_padding_is_below_and_on_the_right():
    padded = windows.pad_to_multiple(jnp.ones((1, 3, 4, 1)), 4)
    chex.assert_trees_all_equal(padded[0, :, :, 0], jnp.ones((4, 4)).at[3].set(0.0))
    square = jnp.ones((1, 4, 4, 1))
    assert windows.pad_to_multiple(square, 2) is square


def test_space_to_depth_goes_down_first():
    # 0 1        (0, 0), (1, 0), (0, 1), (1, 1) = 0, 2, 1, 3
    # 2 3
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    chex.assert_trees_all_equal(windows.space_to_depth(x).ravel(), jnp.array([0.0, 2.0, 1.0, 3.0]))


def test_shift_mask_by_hand():
    # A 4 x 4 map rolled by one, in 2 x 2 windows: the last row and column come from the opposite
    # border. The first window is whole; in the others a line separates the wrapped positions.
    #   a a | b c
    #   a a | b c
    #   ---------
    #   d d | e f
    #   g g | h i
    mask = windows.shift_mask(4, 4, 2, 1)
    left_right = np.array([[1, 0, 1, 0], [0, 1, 0, 1]] * 2, bool)
    top_bottom = np.array([[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2, bool)
    expected = np.stack([np.ones((4, 4), bool), left_right, top_bottom, np.eye(4, dtype=bool)])
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(("height", "width", "window", "shift"), [(8, 12, 4, 2), (9, 6, 3, 1)])
def test_shift_mask_lets_only_former_neighbours_meet(height, width, window, shift):
    # After the roll, two positions of a window are neighbours as before if and only if they are
    # as far apart as they were: roll the coordinates themselves and compare.
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    before = np.asarray(windows.partition(jnp.asarray(grid)[None], window))[0]
    rolled = np.roll(grid, (-shift, -shift), axis=(0, 1))
    after = np.asarray(windows.partition(jnp.asarray(rolled)[None], window))[0]
    kept = after[:, :, None] - after[:, None] == before[:, :, None] - before[:, None]
    mask = windows.shift_mask(height, width, window, shift)
    np.testing.assert_array_equal(mask, kept.all(axis=-1))


def test_relative_coordinates_by_hand():
    # Side 2: offsets -1, 0, 1 are scaled to -8, 0, 8; log2(9) / log2(8) = 1.0566...
    end = np.log2(9.0) / 3.0
    coordinates = windows.relative_coordinates(2)
    np.testing.assert_allclose(coordinates[:, 0, 0], [-end, 0.0, end], rtol=1e-6)  # rows
    np.testing.assert_allclose(coordinates[0, :, 1], [-end, 0.0, end], rtol=1e-6)  # columns
    # Trained with side 9: an offset of 1 is 8 / (9 - 1) = 1; log2(2) / 3 = 1/3.
    finer = windows.relative_coordinates(2, pretrained_window=9)
    np.testing.assert_allclose(finer[2, 1], [1.0 / 3.0, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(windows.relative_coordinates(1), np.zeros((1, 1, 2)))


def slow_pairwise(table):
    window, heads = (table.shape[0] + 1) // 2, table.shape[-1]
    places = [(row, column) for row in range(window) for column in range(window)]
    out = np.zeros((heads, len(places), len(places)), table.dtype)
    for q, (i, j) in enumerate(places):
        for k, (m, n) in enumerate(places):
            out[:, q, k] = table[window - 1 + i - m, window - 1 + j - n]
    return out


@pytest.mark.parametrize("window", [1, 2, 3])
def test_pairwise_is_a_look_up_by_offset(window):
    side = 2 * window - 1
    table = np.random.default_rng(0).normal(size=(side, side, 2)).astype(np.float32)
    np.testing.assert_array_equal(windows.pairwise(jnp.asarray(table)), slow_pairwise(table))
    # An offset's gradient is how many pairs are so far apart: (w - |i|)·(w - |j|).
    gradient = jax.grad(lambda t: windows.pairwise(t).sum())(jnp.asarray(table))
    pairs = window - np.abs(np.arange(1 - window, window))
    np.testing.assert_array_equal(gradient[..., 0], np.outer(pairs, pairs))
