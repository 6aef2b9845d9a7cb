import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.evaluation.answers import ScoredAnswer
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference.evaluate import judge, results_name


@pytest.mark.parametrize(
    ("given", "removed", "name"),
    [
        ("", (), "test"),
        ("", ("text", "image"), "test-without-text-without-image"),
        ("../data/gold.jsonl", (), "data_gold.jsonl"),
        ("/data/gold.jsonl", ("text",), "data_gold.jsonl-without-text"),
        ("tfds:a/b", (), "tfds_a_b"),
        ("..", (), "input"),
    ],
)
def test_results_lie_in_a_folder_that_is_seen_and_under_eval(given, removed, name):
    assert results_name(given, "test", removed) == name


def test_answers_that_cannot_be_judged_are_refused():
    answers = [ScoredAnswer("1", "color", "what color?", "red", 0.5)]
    with pytest.raises(UserError, match=r"none of the 1 questions has a gold.*launch\.predict"):
        judge(answers, ExperimentConfig(), None)
