"""Questions shorter than the sources: the same numbers, whether or not their padding is read."""

import dataclasses
import functools

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.inference.buckets import padding_is_read
from moemoe_jax.models.alignment import AlignmentConfig
from moemoe_jax.models.fusion import FusionConfig
from moemoe_jax.models.gates import GATES, CrossGate, TokenGate
from moemoe_jax.training.losses import LossConfig, objective
from tests.models.tiny import DENSE, QUICK, batch, random_model
from tests.nn.torch_swinv2 import by_name

SHORT = 3
# Buckets so wide that most of 16 positions share a row.
LONG = dataclasses.replace(
    DENSE,
    text=dataclasses.replace(DENSE.text, relative_buckets=4, relative_max_distance=3),
    text_length=16,
)


@pytest.mark.parametrize(
    ("gate", "masked", "reduce"),
    [
        ("token", True, "token_linear"),
        ("token", False, "mean_pool"),
        ("cross", False, "token_linear"),
        ("cross", True, "mean_pool"),
        ("pooled", True, "token_linear"),
    ],
)
def test_the_padding_of_a_question_need_not_come_with_the_batch(gate, masked, reduce):
    alignment = AlignmentConfig(mask_padding=masked, reduce=reduce)
    config = dataclasses.replace(LONG, fusion=FusionConfig(gate=gate), alignment=alignment)
    model = random_model(config)
    padded = batch(config)
    padded["question_ids"][:-1, SHORT - 1] = 1  # </s>
    padded["question_ids"][:, SHORT:] = 0
    cut = padded | {"question_ids": padded["question_ids"][:, :SHORT]}
    graph, params = nnx.split(model)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, data):
        def loss(params):
            tokens = jnp.sum((data["answer_ids"] != 0) & data["question_valid"][..., None])
            return objective(nnx.merge(graph, params)(data), data, LossConfig(), tokens)

        return jax.value_and_grad(loss, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        (value, gradient), (expected, theirs) = run(params, cut), run(params, padded)
    chex.assert_trees_all_close(value, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(by_name(gradient), by_name(theirs), rtol=1e-4, atol=1e-5)


def test_padding_is_encoded_only_where_it_is_read_and_then_a_row_for_each_run():
    def rows(**changes):
        model = random_model(dataclasses.replace(LONG, **changes))
        question, _ = model.encode_question(np.array([[5, 1, 0], [1, 0, 0]], np.int32))
        assert question.valid.shape[1] in (SHORT, LONG.text_length)
        return question.rows.shape[1]

    assert rows(fusion=FusionConfig(gate="pooled")) == SHORT
    assert SHORT < rows(fusion=FusionConfig(gate="token")) < LONG.text_length // 2
    unmasked = AlignmentConfig(mask_padding=False)
    assert rows(fusion=FusionConfig(gate="cross"), alignment=unmasked) > SHORT


def test_a_gate_of_one_s_own_says_what_it_reads(monkeypatch):
    class OfPositions(TokenGate):
        pass

    class OfSources(CrossGate):
        pass

    monkeypatch.setitem(GATES, "mine", OfPositions)
    assert dataclasses.replace(DENSE, fusion=FusionConfig(gate="mine")).reads_question_padding
    monkeypatch.setitem(GATES, "mine", OfSources)
    model = dataclasses.replace(DENSE, fusion=FusionConfig(gate="mine", mask="context"))
    assert not model.reads_question_padding
    assert padding_is_read(model).startswith("model.fusion.gate=mine with padding=read weighs")
