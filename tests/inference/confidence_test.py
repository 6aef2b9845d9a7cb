import chex
import jax.numpy as jnp
import pytest

from moemoe_jax.inference.confidence import CONFIDENCES, sequence_confidence

# Probabilities 1/2 and 1/8, then padding that must not count.
LOG_PROBS = jnp.log(jnp.array([[0.5, 0.125, 0.001]]))
VALID = jnp.array([[True, True, False]])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("prod", 1 / 16),  # 1/2 · 1/8
        ("geomean", 0.25),  # sqrt(1/16)
        ("min", 0.125),
        ("first_token", 0.5),
    ],
)
def test_by_hand(method, expected):
    confidence = sequence_confidence(LOG_PROBS, VALID, method)
    chex.assert_trees_all_close(confidence, jnp.array([expected]), rtol=1e-6)


@pytest.mark.parametrize("method", CONFIDENCES)
def test_what_stands_at_padding_does_not_matter(method):
    padded = sequence_confidence(LOG_PROBS.at[0, 2].set(jnp.nan), VALID, method)
    short = sequence_confidence(LOG_PROBS[:, :2], VALID[:, :2], method)
    chex.assert_trees_all_equal(padded, short)


@pytest.mark.parametrize("method", CONFIDENCES)
def test_any_batch_shape_and_a_row_of_padding_is_zero(method):
    log_probs = jnp.full((2, 3, 4), 1e-7)  # rounding above zero must not become p > 1
    valid = jnp.ones((2, 3, 4), bool).at[1, 2].set(False)
    confidence = sequence_confidence(log_probs, valid, method)
    chex.assert_trees_all_equal(confidence, jnp.ones((2, 3)).at[1, 2].set(0.0))
    chex.assert_type(confidence, jnp.float32)


def test_first_token_is_the_first_real_one():
    valid = jnp.array([[False, True, True]])
    chex.assert_trees_all_close(
        sequence_confidence(LOG_PROBS, valid, "first_token"), jnp.array([0.125]), rtol=1e-6
    )


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="confidence 'mean' is unknown: choose one of prod"):
        sequence_confidence(LOG_PROBS, VALID, "mean")
