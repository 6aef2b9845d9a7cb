import dataclasses
import types

from moemoe_jax.evaluation.answers import ScoredAnswer
from moemoe_jax.evaluation.table import EvalConfig
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.training.validation import Validation


def test_evaluations_during_training_rank_by_confidence_whatever_the_final_one_does():
    answers = [
        ScoredAnswer(str(n), "color", "", "red", confidence, golds=(gold,))
        for n, (confidence, gold) in enumerate([(0.9, "red"), (0.8, "red"), (0.1, "blue")])
    ]
    settings = EvalConfig(score="calibrated", threshold_from="val")
    config = dataclasses.replace(ExperimentConfig(), evaluation=settings)
    found = Validation.judge(types.SimpleNamespace(_config=config), answers)
    assert found["accuracy"] == found["accuracy_micro"] == 2 / 3
    assert found["recall_at_90p"] == 2 / 3
