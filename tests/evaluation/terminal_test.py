from moemoe_jax.evaluation.answers import ScoredAnswer
from moemoe_jax.evaluation.metrics import OF_PREDICTIONS, evaluate
from moemoe_jax.evaluation.report import render_report
from moemoe_jax.evaluation.terminal import format_means, format_table, format_thresholds
from tests.evaluation.scored import some_answers


def test_the_means_are_told_also_where_no_question_has_an_answer():
    given = [ScoredAnswer("1", "color", "color", None, 0.5, golds=())]
    assert format_means(evaluate(given)) == "accuracy 1.0000  recall_at_90p -"


def test_the_terminal_table_is_aligned_and_harmless():
    answers = some_answers("a") + some_answers("much longer\x1b[31m", 4)
    lines = format_table(evaluate(answers)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[:2] == ["attribute", "answers"]
    assert lines[2].startswith("a ") and lines[2].split()[1] == "40"
    assert lines[3].startswith("much longer?[31m")
    assert lines[-1].startswith("mean of 2") and lines[-1].split()[3] == "44"
    assert "\x1b" not in "".join(lines)


def test_a_question_in_words_is_cut_for_the_table():
    answers = some_answers("what is the whole of this thing made of, and where?")
    assert (
        format_table(evaluate(answers))
        .splitlines()[2]
        .startswith("what is the whole of this thing made of…  ")
    )


def test_the_terminal_table_shows_the_right_numbers():
    answers = [ScoredAnswer("1", "neck", "?", "v", 0.5, golds=("v",))]
    row = format_table(evaluate(answers)).splitlines()[2].split()
    full = "100.0%"
    assert row == ["neck", "1", full, full, full, full, full, full, "0.5000", "50.0%"]


def test_thresholds_of_validation_are_told_where_there_are_some():
    # On these answers no threshold reaches 90 %; that of a luckier validation publishes both, and
    # one is right.
    given = [
        ScoredAnswer("1", "neck", "?", "v", 0.5, golds=("v",)),
        ScoredAnswer("2", "neck", "?", "v", 0.6, golds=("round",)),
    ]
    assert format_thresholds(evaluate(given)) == ""
    metrics = evaluate(given, None, {"neck": {"90": 0.5}})
    assert format_thresholds(metrics).splitlines() == [
        "thresholds chosen on these answers           R@90P   0.0%   right of the published      -",
        "thresholds chosen on the validation answers  R@90P  50.0%   right of the published  50.0%",
    ]


def test_a_metric_that_is_added_has_its_mean_and_a_column(monkeypatch):
    monkeypatch.setitem(OF_PREDICTIONS, "surest", lambda score, *_: float(score.max(initial=0)))
    answers = [ScoredAnswer("1", "neck", "?", "v", 0.5, golds=("v",))]
    answers.append(ScoredAnswer("2", "color", "?", "v", 0.25, golds=("v",)))
    metrics = evaluate(answers)
    assert metrics["per_attribute"]["color"]["surest"] == 0.25
    assert metrics["top_k"]["all"]["surest"] == 0.375 and "surest" not in metrics
    lines = [line.split() for line in format_table(metrics).splitlines()]
    assert lines[0][-1] == "surest" and [row[-1] for row in lines[2:4]] == ["0.2500", "0.5000"]
    assert lines[-1][-1] == "0.3750"
    assert "surest</th>" in render_report(answers, metrics)
