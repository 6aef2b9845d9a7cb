import chex
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.nn.blocks import block_sizes, lay_out, usual_blocks


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "most", "sizes"),
    [
        # A mean queue of 32: half of it; 256 / 16 blocks, and one more for each but one expert.
        (128, 2, 8, 128, (16, 16 + 7)),
        (4864, 2, 8, 4864, (256, 38 + 7)),  # 1216, of which half is more than is useful
        (3, 2, 8, 3, (16, 1 + 7)),  # fewer choices than a block has rows
        (128, 2, 8, 20, (16, 10 + 7)),  # with a capacity of 20: 160 rows at most
    ],
)
def test_sizes_by_hand(tokens, top_k, experts, most, sizes):
    assert block_sizes(tokens, top_k, experts, most) == sizes


def test_usually_half_of_the_last_blocks_are_spared():
    assert usual_blocks(23, 8) == 19
    assert usual_blocks(4, 1) == 4


def test_a_layout_by_hand():
    # Blocks of 4: 2 for expert 0, 3 for expert 2, and an empty one for each of the others.
    blocks, first = lay_out(jnp.array([5, 0, 9, 0]), 7, 4)
    chex.assert_trees_all_equal(first, jnp.array([0, 2, 3, 6]))
    chex.assert_trees_all_equal(blocks.owner, jnp.array([0, 0, 1, 2, 2, 2, 3], jnp.int32))
    chex.assert_trees_all_equal(blocks.source, jnp.array([0, 1, 1, 3, 4, 5, 5], jnp.int32))


@pytest.mark.parametrize("uneven", [0.1, 1.0, 30.0])
def test_any_routing_fits_and_every_expert_has_a_block(uneven):
    rng, experts, choices, size = np.random.default_rng(0), 5, 97, 8
    count = 13 + 4
    for _ in range(20):
        load = rng.multinomial(choices, rng.dirichlet(np.full(experts, 1 / uneven)))
        blocks, first = lay_out(jnp.asarray(load), count, size)
        owner = np.asarray(blocks.owner)
        held = np.bincount(owner, minlength=experts)
        assert (held * size >= load).all() and (held > 0).all()
        assert (np.diff(owner) >= 0).all()
        np.testing.assert_array_equal(owner[np.asarray(first)], np.arange(experts))
