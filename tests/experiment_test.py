import json

import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.experiment import (
    DERIVED,
    ExperimentConfig,
    default_config,
    from_config_dict,
    from_json,
    to_json,
)
from moemoe_jax.models.config import SourceSpec


def test_the_defaults_are_those_of_the_dataclasses():
    config, defaults = from_config_dict(default_config()), ExperimentConfig()
    assert config.data == defaults.data
    assert (config.train, config.optimizer) == (defaults.train, defaults.optimizer)


def test_what_follows_from_the_data_is_said_once():
    config = default_config()
    config.data.text_length, config.data.image_size = 256, 128
    config.data.image_mean = (0.1, 0.2, 0.3)
    config.data.no_answer_text = "n/a"
    config.model.fusion.image_repeat = "interpolate"
    built = from_config_dict(config, vocab_size=321)
    assert built.model.text_length == 256 and built.model.vision.image_size == 128
    assert built.model.image_mean == (0.1, 0.2, 0.3)
    assert built.model.text.vocab_size == 321
    assert built.evaluation.no_answer_text == "n/a"
    assert built.model.sources == (SourceSpec("image", "image"), SourceSpec("text", "text"))


def test_a_source_that_is_taken_out_leaves_the_model_too():
    config = default_config()
    del config.data.sources.image
    config.data.image_size = 3  # too small for any model, but there is no image
    assert from_config_dict(config).model.sources == (SourceSpec("text", "text"),)


def test_so_does_one_that_reads_no_field_which_a_flag_can_say():
    config = default_config()
    config.data.sources.image.fields = ()
    config.data.image_size = 3
    built = from_config_dict(from_json(json.loads(to_json(config))))  # as a work directory keeps it
    assert built.model.sources == (SourceSpec("text", "text"),)
    assert [source.name for source in built.data.sources] == ["text"]
    config.data.sources.text.fields = ()
    with pytest.raises(UserError, match=r"data\.sources is empty"):
        from_config_dict(config)


@pytest.mark.parametrize("path", sorted(DERIVED))
def test_what_is_derived_cannot_be_set(path):
    mapping = default_config().to_dict()
    *groups, last = path.split(".")
    node = mapping
    for group in groups:
        node = node[group]
    assert last not in node
    node[last] = 1
    with pytest.raises(UserError, match=rf"^{path} follows from data and the tokenizer"):
        from_config_dict(mapping)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.epoch": 3}, r"train\.epoch does not exist; did you mean epochs\?"),
        ({"modle.x": 3}, r"modle does not exist; did you mean model\?"),
        ({"train.trainable": "some"}, r"train\.trainable is 'some'; choose all, experts or"),
        ({"train.epochs": 0}, r"train\.epochs and train\.steps are both 0"),
        (
            {"data.text_length": 101},
            r"data\.text_length 101 .* the 4 image tokens; set",
        ),
        ({"data.sources.text.kind": "sound"}, r"'sound'"),
        ({"init.expert_noise": -1.0}, r"init\.expert_noise is -1\.0"),
        (
            {"model.question_encoder": False, "model.fusion.gate": "unit"},
            "without a question encoder the context must hold the question",
        ),
        ({"data.context_includes_question": True}, "questions_per_product is 4: set it to 1"),
    ],
)
def test_settings_that_do_not_fit_are_one_line_with_a_remedy(changes, message):
    mapping = default_config().to_dict()
    for path, value in changes.items():
        *groups, last = path.split(".")
        node = mapping
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    with pytest.raises(UserError, match=message) as caught:
        from_config_dict(mapping)
    assert "\n" not in str(caught.value)


def test_json_keeps_every_setting_and_equal_settings_are_equal_text():
    config = default_config()
    config.optimizer.learning_rate = 3e-4
    config.data.sources.text.fields = ("title",)
    text = to_json(config)
    assert from_config_dict(json.loads(text)) == from_config_dict(config)
    again = default_config()
    again.data.sources.text.fields = ("title",)
    again.optimizer.learning_rate = 3e-4
    assert to_json(again) == text
    assert text.endswith("}\n") and list(json.loads(text)) == sorted(json.loads(text))


def test_config_json_gives_the_settings_back():
    config = default_config()
    del config.data.sources.image
    config.data.sources.title = {"kind": "text", "fields": ("title",)}
    config.data.question_templates = {"color": "which {attribute}?"}
    config.optimizer.rate_scale = {"gate": 0.1, "decoder/stack": 2.0}
    config.model.vision.depths = (2, 2, 18, 2)
    config.model.moe.capacity_factor = 1.5
    again = from_json(json.loads(to_json(config)))
    assert to_json(again) == to_json(config)
    assert again.model.vision.depths == (2, 2, 18, 2)
    assert from_config_dict(again).data == from_config_dict(config).data


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"data": {"txt_length": 8}}, r"data\.txt_length does not exist; did you mean text_length"),
        ({"data": 3}, r"data is 3, but it is a group of settings"),
        ({"data": {"sources": [1]}}, r"data\.sources is \[1\], but it is a group of settings"),
        ({"data": {"text_length": "long"}}, r"data\.text_length is 'long'"),
    ],
)
def test_config_json_of_other_settings_is_refused(mapping, message):
    with pytest.raises(UserError, match=message):
        from_json(mapping)


def test_token_tables_may_have_more_rows_than_there_are_pieces():
    config = default_config()
    config.data.vocab_rows = 32128
    assert from_config_dict(config, vocab_size=32100).model.text.vocab_size == 32128
    with pytest.raises(UserError, match="vocab_rows is 32128, but the tokenizer has 32200 pieces"):
        from_config_dict(config, vocab_size=32200)
