import types

import pytest

from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.errors import UserError
from moemoe_jax.evaluation.answers import ScoredAnswer
from moemoe_jax.evaluation.table import EvalConfig
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference import evaluate
from moemoe_jax.inference.config import AnswerConfig
from moemoe_jax.inference.evaluate import judge, results_name
from moemoe_jax.inference.loading import load_calibration
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


def test_answers_judged_otherwise_have_a_folder_of_their_own():
    settings = ["threshold_from=val", "topk=5:10", "bound_delta=../1"]
    name = results_name("", "val", ("text",), settings)
    assert name == ("val-without-text-with-threshold_from_val-with-topk_5_10-with-bound_delta_.._1")


def validation_answers(monkeypatch, count):
    """Has `calibrate` find that many right answers; returns a list that it grows by one a time."""
    answers = [
        ScoredAnswer(id=str(n), attribute="color", question="", answer="red", confidence=0.9,
                     golds=("red",))
        for n in range(count)
    ]  # fmt: skip
    times = []
    monkeypatch.setattr(evaluate, "open_split", lambda *_: None)
    monkeypatch.setattr(evaluate, "answer_source", lambda *_, **__: times.append(1) or answers)
    return times


def loaded(step=3, **groups):
    return types.SimpleNamespace(config=ExperimentConfig(**groups), step=step)


@pytest.mark.parametrize(("count", "few"), [(3, True), (99, True), (100, False)])
def test_a_calibration_on_few_answers_says_so(tmp_path, monkeypatch, count, few):
    validation_answers(monkeypatch, count)
    said = []
    calibrator, _ = evaluate.calibrate(loaded(), WorkDir(tmp_path), Rejects(), said.append)
    assert 0.7 < calibrator([0.9])[0] < 1
    assert any(f"calibrated on {count} answers" in line for line in said) == few
    assert len(said) == few


def test_what_was_fitted_is_used_again_only_for_the_settings_that_it_depends_on(
    tmp_path, monkeypatch
):
    times, workdir = validation_answers(monkeypatch, 20), WorkDir(tmp_path)

    def fit(model):
        """The thresholds, and how often the validation split was answered for them."""
        before = len(times)
        _, thresholds = evaluate.calibrate(model, workdir, Rejects(), lambda _: None)
        return thresholds["color"]["90"], len(times) - before

    # 20 right answers of 20 do not prove 90 %: 0.9 to the power of 20 is 0.12, more than 0.05.
    safe = EvalConfig(bound="clopper_pearson")
    assert fit(loaded()) == (0.9, 1)
    assert fit(loaded(evaluation=EvalConfig(topk=(1,), threshold_from="val"))) == (0.9, 0)
    assert fit(loaded(evaluation=safe)) == (None, 1)
    assert fit(loaded(evaluation=safe)) == (None, 0)
    assert fit(loaded(evaluation=safe, answer=AnswerConfig(confidence="min"))) == (None, 1)
    assert fit(loaded()) == (0.9, 1)
    assert fit(loaded(step=4)) == (0.9, 1)
    assert load_calibration(workdir, 4).calibrator([0.9])[0] > 0.7


@pytest.mark.parametrize("setting", ["threshold_from=val", "score=calibrated"])
def test_judging_by_validation_answers_needs_some(tmp_path, setting):
    name, _, value = setting.partition("=")
    data = DataConfig(val_fraction=0.0)
    assert evaluate.calibrate(loaded(data=data), WorkDir(tmp_path), Rejects()) is None
    model = loaded(data=data, evaluation=EvalConfig(**{name: value}))
    with pytest.raises(UserError, match=f"evaluation.{setting} needs validation records"):
        evaluate.calibrate(model, WorkDir(tmp_path), Rejects())


def test_answers_that_cannot_be_judged_are_refused():
    answers = [ScoredAnswer("1", "color", "what color?", "red", 0.5)]
    with pytest.raises(UserError, match=r"none of the 1 questions has a gold.*launch\.predict"):
        judge(answers, ExperimentConfig(), None)
