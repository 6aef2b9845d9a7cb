"""Questions shorter than the sources: the same numbers, wherever padding is not read."""

import dataclasses

import chex
from flax import nnx
import jax
import pytest

from moemoe_jax.inference.buckets import padding_is_read
from moemoe_jax.models.alignment import AlignmentConfig
from moemoe_jax.models.config import MoEMoEConfig
from moemoe_jax.models.fusion import FusionConfig
from moemoe_jax.models.gates import GATES, CrossGate, TokenGate
from tests.models.tiny import DENSE, batch, random_model

SHORT = 5


def with_gate(gate, question_length=0):
    return dataclasses.replace(
        DENSE, fusion=FusionConfig(gate=gate), question_length=question_length
    )


@pytest.mark.parametrize("gate", ["pooled", "cross"])
def test_padding_that_no_one_reads_can_be_cut(gate):
    model = random_model(with_gate(gate))
    padded = batch(model.config)
    padded["question_ids"][:-1, SHORT - 1] = 1  # </s>
    padded["question_ids"][:, SHORT:] = 0
    cut = padded | {"question_ids": padded["question_ids"][:, :SHORT]}
    graph, state = nnx.split(model)

    @jax.jit
    def run(inputs):
        return nnx.merge(graph, state)(inputs)

    with jax.default_matmul_precision("highest"):
        chex.assert_trees_all_close(run(cut), run(padded), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"gate=token needs questions as long as the sources"),
        (
            {
                "fusion": FusionConfig(gate="pooled"),
                "alignment": AlignmentConfig(mask_padding=False),
            },
            r"mask_padding=False needs questions .* data.question_length is 5; set it to 0",
        ),
    ],
)
def test_a_reader_of_the_padding_refuses_short_questions(changes, message):
    with pytest.raises(ValueError, match=message):
        MoEMoEConfig(**{**vars(DENSE), "question_length": SHORT, **changes})


def test_a_gate_of_one_s_own_says_what_it_reads(monkeypatch):
    class OfPositions(TokenGate):
        pass

    class OfSources(CrossGate):
        pass

    monkeypatch.setitem(GATES, "mine", OfPositions)
    with pytest.raises(ValueError, match="gate=mine needs questions as long as the sources"):
        MoEMoEConfig(
            **{**vars(DENSE), "question_length": SHORT, "fusion": FusionConfig(gate="mine")}
        )
    monkeypatch.setitem(GATES, "mine", OfSources)
    fusion = FusionConfig(gate="mine", mask="context")
    model = MoEMoEConfig(**{**vars(DENSE), "question_length": SHORT, "fusion": fusion})
    assert padding_is_read(model).startswith("model.fusion.gate=mine with padding=read weighs")
