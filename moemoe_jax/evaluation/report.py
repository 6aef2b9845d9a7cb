"""The report: one HTML page that needs nothing but itself.

Every text that comes from data is escaped: product texts are other people's.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import html
import os
from typing import Any

from moemoe_jax.evaluation import plots, selective
from moemoe_jax.evaluation.answers import ScoredAnswer, is_correct, replacing
from moemoe_jax.evaluation.columns import CHOSEN_ON, attribute_rows, columns, explain, number
from moemoe_jax.evaluation.html_page import page, table
from moemoe_jax.evaluation.table import EvalConfig, tabulate

_SAMPLES = 12  # right and wrong answers to show, of each
_WEIGHT_COLORS = ("#2563eb", "#ea580c", "#0d9488", "#9333ea", "#ca8a04", "#64748b")


def write_report(
    path: str | os.PathLike,
    answers: Iterable[ScoredAnswer],
    metrics: Mapping[str, Any],
    *,
    title: str = "Evaluation",
    config: EvalConfig | None = None,
) -> None:
    """Writes `render_report` to `path`; the page appears whole or not at all."""
    text = render_report(answers, metrics, title=title, config=config)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_report(
    answers: Iterable[ScoredAnswer],
    metrics: Mapping[str, Any],
    *,
    title: str = "Evaluation",
    config: EvalConfig | None = None,
) -> str:
    """The report as the text of an HTML page without any external resource.

    Args:
      answers: what `metrics` was computed from.
      metrics: from `metrics.evaluate`.
      title: heading of the page.
      config: the one that `metrics` was computed with.
    """
    answers = list(answers)
    config = config or EvalConfig()
    models = ", ".join(sorted({a.model for a in answers if a.model}))
    counts = metrics["counts"]
    subtitle = f"{counts['labelled']:,} labelled answers, {counts['attributes']} attributes"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(' · '.join(filter(None, [models, subtitle])))}</p>",
        _cards(metrics),
        _figures(answers, config),
        "<h2>Attributes</h2>",
        f"<p>{html.escape(explain(config))}</p>",
        _attribute_table(metrics),
        _thresholds(metrics),
        _top_k(metrics),
        _evidence(metrics),
        _source_weights(answers),
        _samples(answers, config),
    ]
    return page(title, body)


def mean_source_weights(answers: Iterable[ScoredAnswer]) -> dict[str, dict[str, float]]:
    """Mean fusion weight of every source, per attribute, over the answers that had the source."""
    sums: dict[str, dict[str, list[float]]] = {}
    for answer in answers:
        for source, weight in answer.source_weights.items():
            pair = sums.setdefault(answer.attribute, {}).setdefault(source, [0.0, 0])
            pair[0] += weight
            pair[1] += 1
    return {
        name: {source: total / count for source, (total, count) in by_source.items()}
        for name, by_source in sorted(sums.items())
    }


def _cards(metrics: Mapping[str, Any]) -> str:
    shown = (
        ("Accuracy, mean of attributes", metrics["accuracy"]),
        ("Recall@90P, mean of attributes", metrics["recall_at_90p"]),
        ("Coverage@90P, mean of attributes", metrics["coverage_at_90p"]),
        ("Accuracy, all answers", metrics["accuracy_micro"]),
        ("Accuracy where there is no answer", metrics["accuracy_unanswerable"]),
        ("Calibration error (ECE)", metrics["ece"]),
        ("Risk-coverage area (AURC)", metrics["aurc"]),
    )
    cards = (
        f'<div class="card"><b>{number(value, "%")}</b><span>{label}</span></div>'
        for label, value in shown
    )
    return f'<div class="cards">{"".join(cards)}</div>'


def _figures(answers: Sequence[ScoredAnswer], config: EvalConfig) -> str:
    labelled = [a for a in answers if a.golds is not None]
    scores = ["confidence"]
    if labelled and all(a.calibrated is not None for a in labelled):
        scores.append("calibrated")
    sweeps, bins = {}, {}
    for score in scores:
        columns = tabulate(labelled, dataclasses.replace(config, score=score))
        said, right = columns.score[columns.predicted], columns.correct[columns.predicted]
        sweeps[score] = (selective.sweep(said, right), len(labelled))
        bins[score] = selective.reliability(said, right, config.ece_bins, config.ece_binning)
    drawn = (
        ("Precision and coverage, one threshold", plots.precision_coverage_figure(sweeps)),
        ("Reliability of the confidence", plots.reliability_figure(bins)),
    )
    panels = (
        f'<figure class="panel"><figcaption>{caption}</figcaption>{plots.to_svg(figure)}</figure>'
        for caption, figure in drawn
    )
    return f'<h2>Confidence</h2><div class="figures">{"".join(panels)}</div>'


def _attribute_table(metrics: Mapping[str, Any]) -> str:
    rows = attribute_rows(metrics)
    return table(
        ["attribute", *(heading for heading, _, _ in columns())],
        [[name, *cells] for name, cells in rows],
        last_is_mean=True,
    )


def _thresholds(metrics: Mapping[str, Any]) -> str:
    if "val" not in metrics["by_threshold"]:
        return ""
    keys = ("recall_at_90p", "coverage_at_90p", "precision_at_90p")
    rows = [
        [CHOSEN_ON[name], *(number(row[key], "%") for key in keys)]
        for name, row in metrics["by_threshold"].items()
    ]
    return (
        "<h2>Where thresholds are chosen</h2><p>Chosen on the very answers that they are judged on,"
        " thresholds show the best that could be had. Chosen on the validation answers, they show"
        " what publishing new answers gives: the share right of all that is published may then miss"
        " 90%. R@90P and cov@90P are means over the attributes.</p>"
        + table(["chosen on", "R@90P", "cov@90P", "right of the published"], rows)
    )


def _top_k(metrics: Mapping[str, Any]) -> str:
    keys = ("accuracy", "recall_at_90p", "recall_at_95p", "recall_at_99p", "coverage_at_90p")
    groups = [("", metrics["top_k"])]
    groups += [(f"{kind}, ", of) for kind, of in metrics.get("by_product_type", {}).items()]
    rows = [
        [
            f"{kind}{'all' if k == 'all' else f'top {k}'}",
            str(means["attributes"]),
            *(number(means[key], "%") for key in keys),
        ]
        for kind, of in groups
        for k, means in of.items()
    ]
    heads = ["attributes", "how many", "accuracy", "R@90P", "R@95P", "R@99P", "cov@90P"]
    return "<h2>Means over the top attributes</h2>" + table(heads, rows)


def _evidence(metrics: Mapping[str, Any]) -> str:
    if not metrics["by_evidence"]:
        return ""
    keys = ("accuracy", "recall_at_90p", "coverage_at_90p", "precision_at_90p", "ece")
    rows = [
        [name, number(row["count"], ""), *(number(row[key], "%") for key in keys)]
        for name, row in metrics["by_evidence"].items()
    ]
    heads = ["evidence in", "answers", "accuracy", "R@90P", "cov@90P", "precision", "ECE"]
    return (
        "<h2>Where the evidence is</h2><p>Published at each attribute's own threshold.</p>"
        + table(heads, rows)
    )


def _source_weights(answers: Sequence[ScoredAnswer]) -> str:
    weights = mean_source_weights(answers)
    if not weights:
        return ""
    sources = sorted({source for by_source in weights.values() for source in by_source})
    color = {s: _WEIGHT_COLORS[i % len(_WEIGHT_COLORS)] for i, s in enumerate(sources)}
    legend = "".join(
        f'<span class="key" style="background:{color[s]}"></span>{html.escape(s)}' for s in sources
    )
    rows = []
    for name, by_source in weights.items():
        # Weights may be negative or not sum to one: the bar shows shares of magnitude.
        total = sum(abs(w) for w in by_source.values()) or 1.0
        bar = "".join(
            f'<i style="width:{100 * abs(w) / total:.1f}%;background:{color[s]}"></i>'
            for s, w in sorted(by_source.items())
        )
        cells = "".join(f'<td class="n">{number(by_source.get(s), "score")}</td>' for s in sources)
        rows.append(
            f'<tr><td>{html.escape(name)}</td><td><div class="stack">{bar}</div></td>{cells}</tr>'
        )
    heads = "".join(f'<th class="n">{html.escape(s)}</th>' for s in sources)
    return (
        f"<h2>Source weights</h2><p>Mean weight that questions gave each source.{legend}</p>"
        f'<div class="panel"><table><tr><th>attribute</th><th>share</th>{heads}</tr>'
        f"{''.join(rows)}</table></div>"
    )


def _samples(answers: Sequence[ScoredAnswer], config: EvalConfig) -> str:
    right, wrong = [], []
    for answer in answers:
        if answer.golds is not None:
            (right if is_correct(answer, config.no_answer_text) else wrong).append(answer)
    # Mistakes made with confidence teach most; right answers are spread evenly over the file.
    wrong.sort(key=lambda a: -a.confidence)
    right = [right[i * len(right) // _SAMPLES] for i in range(min(_SAMPLES, len(right)))]
    return (
        "<h2>Wrong answers, surest first</h2>"
        + _sample_table(wrong[:_SAMPLES], "wrong")
        + "<h2>Right answers</h2>"
        + _sample_table(right, "right")
    )


def _sample_table(answers: Sequence[ScoredAnswer], kind: str) -> str:
    if not answers:
        return "<p>There are none.</p>"
    heads = ("product", "attribute", "answer", "gold", "confidence", "evidence")
    rows = []
    for answer in answers:
        said = "no answer" if answer.answer is None else answer.answer
        gold = " | ".join(answer.golds or ()) or "no answer"
        rows.append(
            f'<tr><td class="faint">{html.escape(answer.id)}</td>'
            f"<td>{html.escape(answer.attribute)}</td>"
            f'<td class="{kind}">{html.escape(said)}</td><td>{html.escape(gold)}</td>'
            f'<td class="n">{number(answer.confidence, "score")}</td>'
            f'<td class="faint">{html.escape(answer.evidence or "")}</td></tr>'
        )
    head = "".join(f"<th{' class=n' if h == 'confidence' else ''}>{h}</th>" for h in heads)
    return f'<div class="panel"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
