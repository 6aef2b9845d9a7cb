import pytest

from moemoe_jax.data.config import AugmentConfig, DataConfig, SourceConfig
from moemoe_jax.errors import UserError


def test_defaults_are_sound_and_lists_become_tuples():
    config = DataConfig(attributes=["colour"], sources=[SourceConfig("t", "text", ["title"])])
    assert config.attributes == ("colour",)
    assert config.sources[0].fields == ("title",)
    assert DataConfig().split_fractions == {"val": 0.05, "test": 0.2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": ""}, "data.source is empty"),
        ({"sources": ()}, "data.sources is empty"),
        ({"sources": (SourceConfig("a", "text", ("x",)),) * 2}, "a name twice"),
        ({"attributes": "colour"}, "give a tuple"),
        ({"attributes": ("a", "a")}, "names one twice"),
        ({"text_length": 1}, "text_length is 1"),
        ({"text_length": 16, "question_length": 17}, "question_length is 17: give 2 to 16"),
        ({"answer_length": 1}, "answer_length is 1"),
        ({"questions_per_product": 0}, "questions_per_product is 0"),
        ({"context_includes_question": True}, "set it to 1"),
        (
            {
                "context_includes_question": True,
                "questions_per_product": 1,
                "sources": (SourceConfig("image", "image", ("image",)),),
            },
            "name a text source",
        ),
        ({"question_template": "what?"}, "lacks {attribute}"),
        ({"question_template": "{colour}"}, "only {attribute} can be filled in"),
        ({"question_template": "{attribute:d}"}, "only {attribute} can be filled in"),
        ({"question_templates": {"a": "{attribute!x}"}}, "only {attribute} can be filled in"),
        ({"question_templates": {"a": "open {"}}, "unmatched brace"),
        ({"null_answers": "drop"}, "null_answers is 'drop'"),
        ({"no_answer_text": " "}, "no_answer_text is empty"),
        ({"image_mean": (0.5,)}, "image_mean has 1 values"),
        ({"image_std": (0.0, 1.0, 1.0)}, "must be positive"),
        ({"hide_answer_fraction": 1.5}, "hide_answer_fraction is 1.5"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"max_image_pixels": 10**9}, "max_image_pixels"),
        ({"threads": 8, "prefetch": 2}, "one batch a thread"),
        ({"cache_images_mib": -1}, "must not be negative"),
        ({"tokenizer_vocab_size": 10}, "at least 400"),
    ],
)
def test_nonsense_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        DataConfig(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "text", ("title",)), "no name"),
        (("s", "video", ("clip",)), "'text' or 'image'"),
        (("s", "text", "title"), "give a tuple"),
        (("s", "text", ()), "has no fields"),
        (("s", "text", ("title",), 1.0), r"dropout 1.0: give a value in \[0, 1\)"),
        (("s", "text", ("title",), 0.5, "none"), "dropout_asks 'none': use all or untold"),
        (("s", "image", ("image",), 0.5, "untold"), "dropout_asks 'untold': use all"),
    ],
)
def test_bad_sources_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        SourceConfig(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"crop_scale_min": 0.0}, {"word_dropout": 1.0}, {"hide_probability": -0.1}],
)
def test_bad_augmentation_is_refused(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        AugmentConfig(**arguments)
