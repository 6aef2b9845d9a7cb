import types

import pytest

from moemoe_jax.data.rejects import Rejects
from moemoe_jax.errors import UserError
from moemoe_jax.evaluation.answers import ScoredAnswer
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference import evaluate
from moemoe_jax.inference.evaluate import judge, results_name
from moemoe_jax.workdir import WorkDir


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


@pytest.mark.parametrize(("count", "few"), [(3, True), (99, True), (100, False)])
def test_a_calibration_on_few_answers_says_so(tmp_path, monkeypatch, count, few):
    answers = [
        ScoredAnswer(id=str(n), attribute="color", question="", answer="red", confidence=0.9,
                     golds=("red",))
        for n in range(count)
    ]  # fmt: skip
    monkeypatch.setattr(evaluate, "open_split", lambda *_: None)
    monkeypatch.setattr(evaluate, "answer_source", lambda *_, **__: answers)
    loaded, said = types.SimpleNamespace(config=ExperimentConfig(), step=3), []
    calibrator, _ = evaluate.calibrate(loaded, WorkDir(tmp_path), Rejects(), said.append)
    assert 0.7 < calibrator([0.9])[0] < 1
    assert any(f"calibrated on {count} answers" in line for line in said) == few
    assert len(said) == few


def test_answers_that_cannot_be_judged_are_refused():
    answers = [ScoredAnswer("1", "color", "what color?", "red", 0.5)]
    with pytest.raises(UserError, match=r"none of the 1 questions has a gold.*launch\.predict"):
        judge(answers, ExperimentConfig(), None)
