import pytest

from moemoe_jax.training.config import TrainConfig


@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("ece", "min")])
def test_which_end_of_a_metric_is_the_best(metric, mode):
    assert TrainConfig(best_metric=metric).best_mode == mode


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"best_metric": "f1"}, "'f1'; choose one of accuracy, accuracy_micro, recall_at_90p, ece"),
        ({"trainable": "decoder"}, "choose all, experts or backbone"),
        ({"log_every": 0}, "train.log_every is 0; it must be at least 1"),
        ({"stall_seconds": -1.0}, "train.stall_seconds is -1.0; give seconds, or 0 for never"),
        ({"epochs": 0}, "train.epochs and train.steps are both 0"),
    ],
)
def test_nonsense_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        TrainConfig(**arguments)
    assert "\n" not in str(caught.value)
