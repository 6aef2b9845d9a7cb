import chex
import jax.numpy as jnp

from moemoe_jax.nn.queues import capacity_tiers, enqueue


def test_capacity_drops_the_last_tokens_by_hand():
    # Three valid tokens, one choice each, two experts: ceil(1.0 * 3 / 2) = 2 slots. All want 0.
    chosen, valid = jnp.zeros((4, 1), jnp.int32), jnp.array([True, True, False, True])
    queue = enqueue(chosen, valid, 2, 1.0)
    chex.assert_trees_all_equal(queue.kept[:, 0], jnp.array([True, True, False, False]))
    chex.assert_trees_all_equal(queue.load, jnp.array([2, 0]))


def test_tiers():
    # 2 * 128 / 8 = 32 choices per expert: 1.25 x 32 = 40, 2.5 x 32 = 80, and everything.
    assert capacity_tiers(128, 2, 8) == (40, 80, 128)
    # 2.5 x 64 = 160 holds more than everything.
    assert capacity_tiers(128, 2, 4) == (80, 128)
    assert capacity_tiers(64, 2, 8) == (64,)
    assert capacity_tiers(100, 1, 1) == (100,)
