import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.models.outputs import Outputs
from moemoe_jax.nn.moe import MoEStats
from moemoe_jax.training.losses import LossConfig, objective


def stats(aux, z):
    return MoEStats(
        aux_loss=jnp.float32(aux),
        z_loss=jnp.float32(z),
        load=jnp.array([0.5, 0.5]),
        dropped=jnp.float32(0.125),
        entropy=jnp.float32(0.25),
    )


# One product, three questions (the last is padding), answers of two tokens, three words. Question
# 0 answers "2 1", question 1 "1" and padding. The logits of a position say p(1) or p(2).
BATCH = {
    "answer_ids": np.array([[[2, 1], [1, 0], [2, 2]]]),
    "question_valid": np.array([[True, True, False]]),
}
PROBABILITIES = np.array(
    [[[[0.25, 0.25, 0.5], [0.25, 0.5, 0.25]], [[0.5, 0.25, 0.25]] * 2, [[0.8, 0.1, 0.1]] * 2]]
)
OUTPUTS = Outputs(
    hidden=jnp.log(PROBABILITIES),
    vocabulary=jnp.eye(3),
    alignment=jnp.array([0.25, 0.5]),
    alignment_variance=jnp.array([3.0, 1.0, 2.0]),
    source_weights=jnp.array([[[0.2, 0.8], [0.4, 0.6], [9.0, 9.0]]]),
    moe={"decoder/1": stats(2.0, 3.0), "decoder/3": stats(1.0, 5.0)},
)
CROSS_ENTROPY = (np.log(2) + np.log(2) + np.log(4)) / 3


def run(outputs=OUTPUTS, tokens=3.0, **weights):
    return objective(outputs, BATCH, LossConfig(**weights), jnp.float32(tokens))


def test_the_objective_by_hand():
    loss, metrics = run()
    # Eqs 8 and 10: cross-entropy of the three real tokens + (0.25 + 0.5) + 0.1 (2 + 1).
    chex.assert_trees_all_close(loss, jnp.float32(CROSS_ENTROPY + 0.75 + 0.3), atol=1e-6)
    expected = {
        "loss/total": loss,
        "loss/cross_entropy": jnp.float32(CROSS_ENTROPY),
        "loss/align": jnp.array([0.25, 0.5]),
        "loss/aux": jnp.float32(3.0),
        "loss/router_z": jnp.float32(8.0),
        # Question 0 is right in both tokens, question 1 says 0 in place of 1.
        "train/teacher_forced_accuracy": jnp.float32(0.5),
        "source_weights": jnp.array([0.3, 0.7]),
        "align_variance": jnp.array([1.0, 2.0]),
        "align_variance_of_questions": jnp.float32(3.0),
        "moe/decoder/1/aux_loss": jnp.float32(2.0),
        "moe/decoder/1/load": jnp.array([0.5, 0.5]),
        "moe/decoder/3/dropped": jnp.float32(0.125),
        "moe/decoder/3/entropy": jnp.float32(0.25),
    }
    chex.assert_trees_all_close({k: metrics[k] for k in expected}, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "beside"),
    [
        ({"align_weight": 0.0}, 0.3),
        ({"align_weight": 2.0, "aux_weight": 0.0}, 1.5),
        ({"aux_weight": 1.0, "align_weight": 0.0}, 3.0),
        ({"aux_weight": 1.0, "align_weight": 0.0, "aux_reduce": "mean"}, 1.5),
        ({"z_weight": 0.01, "align_weight": 0.0, "aux_weight": 0.0}, 0.08),
        ({"z_weight": 0.01, "align_weight": 0.0, "aux_weight": 0.0, "aux_reduce": "mean"}, 0.04),
    ],
)
def test_the_weights_by_hand(weights, beside):
    chex.assert_trees_all_close(run(**weights)[0], jnp.float32(CROSS_ENTROPY + beside), atol=1e-6)


def test_a_dense_model_without_alignment_has_cross_entropy_alone():
    nothing = jnp.zeros((0,))
    outputs = OUTPUTS.replace(alignment=nothing, alignment_variance=nothing, moe={})
    loss, metrics = run(outputs)
    chex.assert_trees_all_close(loss, jnp.float32(CROSS_ENTROPY), atol=1e-6)
    assert not any(name.startswith(("loss/a", "loss/r", "moe")) for name in metrics)


def test_the_cross_entropy_is_a_mean_over_the_tokens_it_is_told():
    # A micro-batch with three tokens where the average has four.
    loss, _ = run(tokens=4.0, align_weight=0.0, aux_weight=0.0)
    chex.assert_trees_all_close(loss, jnp.float32(CROSS_ENTROPY * 3 / 4), atol=1e-6)


def test_padding_has_no_gradient_and_a_batch_of_nothing_is_finite():
    def loss(hidden, batch, tokens):
        return objective(OUTPUTS.replace(hidden=hidden), batch, LossConfig(), tokens)[0]

    gradient = jax.grad(loss)(OUTPUTS.hidden, BATCH, jnp.float32(3))
    real = (BATCH["answer_ids"] != 0) & BATCH["question_valid"][..., None]
    assert np.array_equal(np.any(np.asarray(gradient) != 0, axis=-1), real)
    nobody = BATCH | {"question_valid": np.zeros((1, 3), bool)}
    value, gradient = jax.value_and_grad(loss)(OUTPUTS.hidden, nobody, jnp.float32(0))
    chex.assert_trees_all_close(value, jnp.float32(0.75 + 0.3), atol=1e-6)
    chex.assert_trees_all_equal(gradient, jnp.zeros_like(gradient))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aux_weight": -0.1}, "loss.aux_weight is -0.1; it must be 0 or more"),
        ({"aux_reduce": "max"}, "loss.aux_reduce is 'max'; use sum or mean"),
        ({"label_smoothing": 1.0}, "loss.label_smoothing is 1.0; use 0 to below 1"),
        ({"label_smoothing": -0.1}, "loss.label_smoothing is -0.1; use 0 to below 1"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**options)
