import pytest

from configs import base
from moemoe_jax.errors import UserError
from moemoe_jax.experiment import from_config_dict
from moemoe_jax.training.encoders import Encoders, cache_of, encoders_of


def settings(**changes):
    """Experts alone, and nothing that is drawn anew at each step."""
    mapping = base.experts_only(base.get_config())
    mapping.update_from_flattened_dict({"train.frozen_dropout": False} | changes)
    return from_config_dict(mapping, 400)


def test_encodings_are_kept_where_nothing_changes_them_and_products_come_again():
    config = settings()
    assert encoders_of(config) == Encoders(frozen=True, drop_out=False)
    assert cache_of(config) == "memory"
    assert cache_of(config, repeats=False) == "none"
    assert cache_of(settings(**{"train.cache_encodings": "disk"}), repeats=False) == "disk"
    assert cache_of(settings(**{"train.cache_encodings": "none"})) == "none"
    assert cache_of(settings(**{"data.augment.flip": True})) == "none"
    # Without a rate, there is no dropout to leave out.
    rates = {"model.text.dropout": 0.0, "model.vision.drop_path": 0.0, "train.frozen_dropout": True}
    assert cache_of(settings(**rates)) == "memory"


def test_what_is_trained_or_drops_out_is_run_as_ever():
    assert encoders_of(settings(**{"train.trainable": "all"})) == Encoders(False, True)
    assert encoders_of(settings(**{"train.frozen_dropout": True})) == Encoders(True, True)
    mixed = settings(**{"model.moe_layers.context_encoder": "last"})
    assert encoders_of(mixed) == Encoders(False, True)


def test_keeping_what_changes_is_refused_with_every_setting_at_fault():
    wrong = {
        "train.frozen_dropout": True,
        "model.moe_layers.question_encoder": "0",
        "model.vision.attention_dropout": 0.3,
        "model.vision.drop_path": 0.0,
        "model.text.dropout": 0.1,
        "data.augment.crop_scale_min": 0.5,
        "data.augment.hide_probability": 0.25,
        "data.sources.text.dropout": 0.2,
        "data.context_includes_question": True,
        "data.text_buckets": (8,),
        "data.questions_per_product": 1,
        "train.cache_encodings": "disk",
    }
    with pytest.raises(UserError) as error:
        cache_of(settings(**wrong))
    assert str(error.value) == (
        "train.cache_encodings=disk keeps what the encoders once gave, but these settings change "
        "it from step to step: model.moe_layers.question_encoder=0, train.frozen_dropout=True "
        "(with model.text.dropout=0.1, model.vision.attention_dropout=0.3), "
        "data.augment.crop_scale_min=0.5, data.augment.hide_probability=0.25, "
        "data.sources.text.dropout=0.2, data.context_includes_question=True, "
        "data.text_buckets=(8,); change them, or set "
        "train.cache_encodings=auto, which then keeps nothing"
    )
    with pytest.raises(UserError, match=r"from step to step: train\.trainable=all;"):
        cache_of(settings(**{"train.trainable": "all", "train.cache_encodings": "memory"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.cache_encodings": "ram"}, "choose one of auto, none, memory, disk"),
        ({"train.cache_encodings_mib": 0}, "train.cache_encodings_mib is 0; it must be at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes)
