from html.parser import HTMLParser

import numpy as np
import pytest

from moemoe_jax.evaluation import plots
from moemoe_jax.evaluation.answers import ScoredAnswer
from moemoe_jax.evaluation.metrics import OF_PREDICTIONS, evaluate
from moemoe_jax.evaluation.report import (
    format_means,
    format_table,
    format_thresholds,
    mean_source_weights,
    render_report,
    write_report,
)
from moemoe_jax.evaluation.selective import reliability, sweep
from moemoe_jax.evaluation.table import EvalConfig

HOSTILE = "<script>alert('x')</script>\"&$\\frac{\x1b[31m"


def some_answers(name: str = "color", count: int = 40) -> list[ScoredAnswer]:
    rng = np.random.default_rng(0)
    return [
        ScoredAnswer(
            f"{name}{i}",
            name,
            name,
            name,
            float(c),
            {"image": 0.75, name: 0.25},
            name,
            calibrated=float(c) / 2,
            golds=(name if rng.uniform() < c else "other",),
            evidence=("image", "text")[i % 2],
            product_type=name,
        )
        for i, c in enumerate(rng.uniform(0.3, 1.0, count))
    ]


class Elements(HTMLParser):
    """Collects tags and checks that they nest."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for name, value in attrs if name.endswith(("src", "href"))]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    return elements


def test_the_means_are_told_also_where_no_question_has_an_answer():
    given = [ScoredAnswer("1", "color", "color", None, 0.5, golds=())]
    assert format_means(evaluate(given)) == "accuracy 1.0000  recall_at_90p -"


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    answers = some_answers()
    write_report(tmp_path / "eval" / "report.html", answers, evaluate(answers), title="Fashion")
    page = (tmp_path / "eval" / "report.html").read_text()
    elements = parse(page)
    assert elements.seen.count("svg") == 2
    assert elements.seen.count("table") == 6
    assert not {"script", "link", "img", "iframe"} & set(elements.seen)
    assert all(link.startswith("#") for link in elements.links)
    assert "url(http" not in page and "@import" not in page
    for text in ("<h1>Fashion</h1>", "calibrated", "Source weights", "Where the evidence is"):
        assert text in page


def test_hostile_texts_are_escaped_everywhere():
    answers = some_answers(HOSTILE)
    for group_by in ("attribute", "product_type_attribute"):
        config = EvalConfig(group_by=group_by)
        page = render_report(answers, evaluate(answers, config), title=HOSTILE, config=config)
        assert "<script" not in page
        assert page.count("&lt;script&gt;") > 40
        assert "script" not in parse(page).seen


def test_the_same_answers_give_the_same_page():
    answers = some_answers()
    metrics = evaluate(answers)
    assert render_report(answers, metrics) == render_report(answers, metrics)


@pytest.mark.parametrize("answers", [[], some_answers()[:1]])
def test_few_answers_or_none_still_give_a_page(answers):
    parse(render_report(answers, evaluate(answers)))


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
    heading = "Where thresholds are chosen"
    assert heading not in render_report(given, evaluate(given))
    page = render_report(given, metrics)
    parse(page)
    assert heading in page and "the validation answers" in page and "50.0%" in page


def test_mean_source_weights_by_hand():
    # The second answer lacks the image: its mean is over the one that had it.
    answers = [
        ScoredAnswer("1", "neck", "?", "v", 0.5, {"image": 0.75, "title": 0.25}),
        ScoredAnswer("2", "neck", "?", "v", 0.5, {"title": 1.0}),
    ]
    assert mean_source_weights(answers) == {"neck": {"image": 0.75, "title": 0.625}}


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


def test_figures_draw_what_they_are_given():
    score, right = np.linspace(0.1, 1, 10), np.arange(10) >= 3
    curve = plots.precision_coverage_figure({"confidence": (sweep(score, right), 20)})
    line = curve.axes[0].lines[0]
    assert line.get_xdata()[-1] == 0.5  # 10 predictions of 20 labelled answers
    assert line.get_ydata()[-1] == pytest.approx(0.7)
    dots = plots.reliability_figure({"confidence": reliability(score, right, 5)})
    np.testing.assert_allclose(dots.axes[0].lines[1].get_ydata(), [0, 0.5, 1, 1, 1])
