"""Metrics of attribute answers: accuracy, Recall@xP, calibration, per attribute and over them.

Definitions, for one attribute (or product type and attribute, see `EvalConfig.group_by`):
- An answer is *labelled* if its golds are known, *answerable* if it has at least one gold value.
  Unlabelled answers are counted and enter nothing else.
- `accuracy`: share of labelled answers that are right (equal to a gold after normalisation, or an
  abstention where it is known that there is no answer).
- A *prediction* is a labelled answer that is not an abstention. Where there is no answer, a
  prediction is wrong.
- `recall_at_xp`: the highest TP(t) / N whose precision TP(t) / PP(t) is at least x %, over
  thresholds t that publish the PP(t) predictions with score >= t, TP(t) of them right; 0 if none
  qualifies. N is the answerable answers, abstentions included. `coverage_at_90p` is PP(t) over all
  labelled answers, at the t of Recall@90P.
- `by_threshold`: what is published at 90 % by thresholds chosen on these very answers ("test", the
  best that could be had) and by those chosen on validation answers ("val", what publishing new
  answers gives): `recall_at_90p` and `coverage_at_90p` are means over attributes,
  `precision_at_90p` is the share right of all that is published, which for "val" may miss 90 %.
- `majority`: accuracy of always giving the attribute's most frequent gold of this very set.

Over attributes: top-level `accuracy`, `recall_at_xp` and `coverage_at_90p` are unweighted means
over all attributes (one without answerable answers has no recall and is left out of that mean);
`accuracy_micro`, `accuracy_answerable`, `accuracy_unanswerable`, `ece` and `aurc` pool all answers
(the last two, and `ece` of an attribute, look at predictions only).
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import Any

import numpy as np

from moemoe_jax.errors import UserError
from moemoe_jax.evaluation import selective
from moemoe_jax.evaluation.answers import ScoredAnswer
from moemoe_jax.evaluation.table import EVIDENCE, AnswerTable, EvalConfig, tabulate

LEVELS = (90, 95, 99)
# Group -> level ("90") -> score from which answers are published; None publishes nothing.
Thresholds = Mapping[str, Mapping[str, float | None]]


def _ece(score: np.ndarray, correct: np.ndarray, config: EvalConfig) -> float | None:
    bins = selective.reliability(score, correct, config.ece_bins, config.ece_binning)
    return selective.calibration_error(bins)


OF_PREDICTIONS: dict[str, Callable[[np.ndarray, np.ndarray, EvalConfig], float | None]] = {
    "ece": _ece,
}
"""What follows from an attribute's predictions: (score [N], correct [N], config) to a number, or
None where it is not defined. One that is added here has its mean over attributes in `top_k`, and a
column in the report's table and the terminal's."""


def _averaged() -> tuple[str, ...]:
    """What `top_k` has the means of."""
    recalls = (f"recall_at_{level}p" for level in LEVELS)
    return ("accuracy", *recalls, "coverage_at_90p", *OF_PREDICTIONS, "majority")


def fit_thresholds(
    answers: Iterable[ScoredAnswer], config: EvalConfig | None = None
) -> dict[str, dict[str, float | None]]:
    """Picks, for every group and level, the score from which answers are published.

    Args:
      answers: labelled answers, of the validation split if the thresholds are to be deployed.
      config: `threshold_from` does not matter here.

    Returns:
      {group: {"90": threshold, "95": ..., "99": ...}}, JSON-safe; None publishes nothing.
    """
    config = config or EvalConfig()
    return _pick_thresholds(tabulate(answers, config), config)


def _pick_thresholds(table: AnswerTable, config: EvalConfig) -> dict[str, dict[str, float | None]]:
    delta = config.bound_delta if config.bound == "clopper_pearson" else None
    thresholds = {}
    for name, rows in zip(table.names, table.slices, strict=True):
        said = table.predicted[rows]
        curve = selective.sweep(table.score[rows][said], table.correct[rows][said])
        thresholds[name] = {
            str(level): selective.best_point(curve, level, delta).threshold for level in LEVELS
        }
    return thresholds


def evaluate(
    answers: Iterable[ScoredAnswer],
    config: EvalConfig | None = None,
    thresholds: Thresholds | None = None,
) -> dict[str, Any]:
    """Computes every metric of the module's docstring.

    Args:
      answers: of one split.
      config: how to judge.
      thresholds: from `fit_thresholds` on validation answers, with the same `config`; None where
        there are none. A group that it lacks publishes nothing.

    Returns:
      JSON-safe (undefined is None, never NaN): accuracy, recall_at_{90,95,99}p, coverage_at_90p,
      accuracy_micro, accuracy_answerable, accuracy_unanswerable, ece, aurc;
      per_attribute {name: row}, most answers first, with count, accuracy, recall_at_{90,95,99}p,
      coverage_at_90p, precision_at_90p, threshold_at_90p, ece, majority;
      top_k {"5", "10", "15", "all": means of the rows}; by_product_type {type: top_k} where groups
      are product types' attributes; by_evidence; by_threshold {"test", and "val" where given};
      counts; settings (the config).

    Raises:
      UserError: thresholds are wanted and missing, or calibrated scores are missing.
    """
    config = config or EvalConfig()
    if thresholds is None and config.threshold_from == "val":
        raise UserError("threshold_from is 'val' but validation thresholds are missing: fit them")
    table = tabulate(answers, config)
    choices = {"test": _pick_thresholds(table, config)}
    if thresholds is not None:
        choices["val"] = thresholds
    thresholds = choices[config.threshold_from]
    rows = {
        name: _measure(table, slice_, thresholds.get(name, {}), majority, config)
        for name, slice_, majority in zip(table.names, table.slices, table.majority, strict=True)
    }
    rows = dict(sorted(rows.items(), key=lambda item: -item[1]["count"]))
    top_k = _top_k(rows, config)
    said = table.predicted
    pooled = ("majority", *OF_PREDICTIONS)
    metrics = {name: top_k["all"][name] for name in _averaged() if name not in pooled}
    metrics |= {
        "accuracy_micro": _share(table.correct),
        "accuracy_answerable": _share(table.correct[table.answerable]),
        "accuracy_unanswerable": _share(table.correct[~table.answerable]),
        "ece": _ece(table.score[said], table.correct[said], config),
        "aurc": selective.risk_coverage_area(
            selective.sweep(table.score[said], table.correct[said])
        ),
        "per_attribute": rows,
        "top_k": top_k,
        "by_evidence": _by_evidence(table, thresholds, config),
        "by_threshold": {name: _at_90p(table, of, config) for name, of in choices.items()},
        "counts": _counts(table),
        "settings": dataclasses.asdict(config) | {"topk": list(config.topk)},
    }
    if config.group_by == "product_type_attribute":
        members: dict[str, dict[str, Any]] = {}
        for name, kind in zip(table.names, table.product_types, strict=True):
            members.setdefault(kind, {})[name] = rows[name]
        metrics["by_product_type"] = {k: _top_k(of, config) for k, of in members.items()}
    return metrics


def _measure(
    table: AnswerTable,
    rows: slice,
    thresholds: Mapping[str, float | None],
    majority: float,
    config: EvalConfig,
) -> dict[str, Any]:
    """One row of `per_attribute`."""
    said = table.predicted[rows]
    score, correct = table.score[rows][said], table.correct[rows][said]
    count = said.size
    total = count if config.recall_over == "labelled" else int(table.answerable[rows].sum())
    points = {
        level: selective.point_at(score, correct, thresholds.get(str(level))) for level in LEVELS
    }
    row = {"count": count, "accuracy": _share(table.correct[rows])}
    for level, point in points.items():
        row[f"recall_at_{level}p"] = point.true_positives / total if total else None
    return row | {
        "coverage_at_90p": points[90].published / count,
        "precision_at_90p": points[90].precision,
        "threshold_at_90p": points[90].threshold,
        **{name: measure(score, correct, config) for name, measure in OF_PREDICTIONS.items()},
        "majority": majority,
    }


def _top_k(rows: Mapping[str, Mapping[str, Any]], config: EvalConfig) -> dict[str, dict[str, Any]]:
    """Unweighted means over the top attributes; "attributes" says over how many."""
    by = "count" if config.topk_by == "count" else "recall_at_90p"
    names = sorted(rows, key=lambda name: (-(rows[name][by] or 0), name))
    return {
        str(k): {
            "attributes": len(chosen),
            **{metric: _mean(rows[name][metric] for name in chosen) for metric in _averaged()},
        }
        for k, chosen in [*((k, names[:k]) for k in config.topk), ("all", names)]
    }


def _published(table: AnswerTable, thresholds: Thresholds) -> np.ndarray:
    """Bool: which answers are published, each at the 90 % threshold of its group."""
    bars = [thresholds.get(name, {}).get("90") for name in table.names]
    bar = np.array([np.inf if b is None else b for b in bars], float)[table.group]
    return table.predicted & (table.score >= bar)


def _at_90p(
    table: AnswerTable, thresholds: Thresholds, config: EvalConfig
) -> dict[str, float | None]:
    """One row of `by_threshold`."""
    published = _published(table, thresholds)
    wanted = table.answerable | (config.recall_over == "labelled")

    def counts(rows: np.ndarray) -> list[int]:
        return np.bincount(table.group[rows], minlength=len(table.names)).tolist()

    def mean(part: np.ndarray, whole: np.ndarray) -> float | None:
        pairs = zip(counts(part), counts(whole), strict=True)
        return _mean(n / of if of else None for n, of in pairs)

    return {
        "recall_at_90p": mean(published & table.correct, wanted),
        "coverage_at_90p": mean(published, np.ones_like(published)),
        "precision_at_90p": _share(table.correct[published]),
    }


def _by_evidence(
    table: AnswerTable, thresholds: Thresholds, config: EvalConfig
) -> dict[str, dict[str, Any]]:
    """Answers pooled by where the gold can be seen, published at their attribute's threshold."""
    published = _published(table, thresholds)
    breakdown = {}
    for code, name in enumerate(EVIDENCE):
        here = table.evidence == code
        if not here.any():
            continue
        said, out = here & table.predicted, here & published
        wanted = here if config.recall_over == "labelled" else here & table.answerable
        right = int(np.sum(table.correct & out))
        breakdown[name] = {
            "count": int(here.sum()),
            "accuracy": _share(table.correct[here]),
            "recall_at_90p": right / int(wanted.sum()) if wanted.any() else None,
            "coverage_at_90p": float(out.sum() / here.sum()),
            "precision_at_90p": right / int(out.sum()) if out.any() else None,
            "ece": _ece(table.score[said], table.correct[said], config),
        }
    return breakdown


def _counts(table: AnswerTable) -> dict[str, int]:
    labelled, said = table.group.size, int(table.predicted.sum())
    answerable = int(table.answerable.sum())
    return {
        "answers": labelled + table.unlabelled,
        "labelled": labelled,
        "unlabelled": table.unlabelled,
        "answerable": answerable,
        "unanswerable": labelled - answerable,
        "predictions": said,
        "abstentions": labelled - said,
        "correct": int(table.correct.sum()),
        "attributes": len(table.names),
    }


def _share(flags: np.ndarray) -> float | None:
    return float(np.mean(flags)) if flags.size else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
