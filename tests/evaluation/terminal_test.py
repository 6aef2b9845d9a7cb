from moemoe_jax.evaluation.answers import ScoredAnswer
from moemoe_jax.evaluation.metrics import evaluate
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
