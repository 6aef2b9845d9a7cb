import dataclasses

import pytest

from moemoe_jax.models.config import MoELayers, MoEMoEConfig, SourceSpec
from moemoe_jax.models.fusion import FusionConfig
from moemoe_jax.nn.moe import MoEConfig
from tests.models.tiny import DENSE, MIXTURE, WITH_IMAGE


@pytest.mark.parametrize(
    ("name", "base", "expected"),
    [
        ("none", 0, ()),
        ("all", 0, (0, 1, 2, 3, 4)),
        ("odd", 0, (1, 3)),
        ("even", 0, (0, 2, 4)),
        ("odd", 1, (0, 2, 4)),
        ("even", 1, (1, 3)),
        ("last", 1, (4,)),
        ("last2", 0, (3, 4)),
        ("2", 1, (2,)),
        (" 4, 0,4", 0, (0, 4)),
        (3, 0, (3,)),  # a bare number of a command line arrives as an int
    ],
)
def test_names_of_layers_become_positions(name, base, expected):
    layers = MoELayers(decoder=name, index_base=base)
    assert layers.of("decoder", 5) == expected
    assert layers.of("context_encoder", 5) == ()


def test_last2_of_a_single_layer_is_that_layer():
    assert MoELayers(decoder="last2").of("decoder", 1) == (0,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oddd", "model.moe_layers.decoder is 'oddd'; use none, all, odd, even, last, last2, or"),
        ("1,,2", "model.moe_layers.decoder is '1,,2'; use"),
        ("1,5", "model.moe_layers.decoder is '1,5', but the stack has layers 0 to 4"),
        ("-1", "model.moe_layers.decoder is '-1', but the stack has layers 0 to 4"),
    ],
)
def test_impossible_layers_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        MoELayers(decoder=name).of("decoder", 5)


def test_an_index_base_other_than_0_and_1_is_refused():
    with pytest.raises(ValueError, match=r"model.moe_layers.index_base is 2; use 0 or 1"):
        MoELayers(index_base=2)


QUESTION_ROUTING = MoEConfig(routing_level="question")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share_embeddings": "some"}, "model.share_embeddings is 'some'; choose one of all"),
        ({"sources": ()}, "data.sources is empty"),
        ({"question_encoder": False}, "set model.fusion.gate=unit or model.question_encoder=True"),
        (
            {
                "question_encoder": False,
                "fusion": FusionConfig(gate="unit"),
                "question_start": True,
            },
            "model.question_start needs model.question_encoder=True",
        ),
        (
            {
                "question_encoder": False,
                "fusion": FusionConfig(gate="unit"),
                "moe": QUESTION_ROUTING,
            },
            "model.moe.routing_level=question needs model.question_encoder=True",
        ),
        (
            {"moe": QUESTION_ROUTING, "moe_layers": MoELayers(context_encoder="last")},
            "routing_level=question is for the decoder",
        ),
        (
            {"moe": MoEConfig(routing_level="sequence"), "moe_layers": MoELayers(decoder="last")},
            "routing_level=sequence averages over a whole answer, .* use token or question",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DENSE, **changes)


def test_routing_by_the_sequence_is_for_encoders():
    layers = MoELayers(question_encoder="all", context_encoder="all")
    allowed = dataclasses.replace(DENSE, moe=MoEConfig(routing_level="sequence"), moe_layers=layers)
    assert allowed.moe.routing_level == "sequence"


def test_the_image_must_fill_the_text_length_only_where_there_is_one():
    with pytest.raises(ValueError, match=r"data.text_length 24 .* the 16 image tokens"):
        dataclasses.replace(WITH_IMAGE, text_length=24)
    assert dataclasses.replace(MIXTURE, text_length=24).text_length == 24


def test_images_have_three_channels():
    grey = dataclasses.replace(WITH_IMAGE.vision, channels=1)
    with pytest.raises(ValueError, match=r"model\.vision\.channels is 1, .* set it to 3"):
        dataclasses.replace(WITH_IMAGE, vision=grey)


def test_an_unknown_kind_of_source_is_refused():
    with pytest.raises(ValueError, match=r"data.sources.sound.kind is 'audio'; use text or image"):
        SourceSpec("sound", "audio")


def test_has_tells_which_kinds_there_are():
    assert MoEMoEConfig().has("image")
    assert MoEMoEConfig().has("text")
    assert not DENSE.has("image")
