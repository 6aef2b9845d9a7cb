from html.parser import HTMLParser

import numpy as np
import pytest

from moemoe_jax.evaluation import plots
from moemoe_jax.evaluation.answers import ScoredAnswer
from moemoe_jax.evaluation.metrics import evaluate
from moemoe_jax.evaluation.report import (
    mean_source_weights,
    render_report,
    write_report,
)
from moemoe_jax.evaluation.selective import reliability, sweep
from moemoe_jax.evaluation.table import EvalConfig
from tests.evaluation.scored import some_answers

HOSTILE = "<script>alert('x')</script>\"&$\\frac{\x1b[31m"


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
    given = [ScoredAnswer("1", "neck", "?", "v", 0.5, golds=("v",))]
    heading = "Where thresholds are chosen"
    assert heading not in render_report(given, evaluate(given))
    page = render_report(given, evaluate(given, None, {"neck": {"90": 0.5}}))
    parse(page)
    assert heading in page and "the validation answers" in page and "100.0%" in page


def test_mean_source_weights_by_hand():
    # The second answer lacks the image: its mean is over the one that had it.
    answers = [
        ScoredAnswer("1", "neck", "?", "v", 0.5, {"image": 0.75, "title": 0.25}),
        ScoredAnswer("2", "neck", "?", "v", 0.5, {"title": 1.0}),
    ]
    assert mean_source_weights(answers) == {"neck": {"image": 0.75, "title": 0.625}}


def test_figures_draw_what_they_are_given():
    score, right = np.linspace(0.1, 1, 10), np.arange(10) >= 3
    curve = plots.precision_coverage_figure({"confidence": (sweep(score, right), 20)})
    line = curve.axes[0].lines[0]
    assert line.get_xdata()[-1] == 0.5  # 10 predictions of 20 labelled answers
    assert line.get_ydata()[-1] == pytest.approx(0.7)
    dots = plots.reliability_figure({"confidence": reliability(score, right, 5)})
    np.testing.assert_allclose(dots.axes[0].lines[1].get_ydata(), [0, 0.5, 1, 1, 1])
