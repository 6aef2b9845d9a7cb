"""What is shown of the metrics of every attribute, on a terminal and in the report."""

from collections.abc import Mapping
from typing import Any

from moemoe_jax.evaluation.metrics import OF_PREDICTIONS
from moemoe_jax.evaluation.table import EvalConfig

_COLUMNS = (  # heading, key, unit: "%" a share, "" a plain number
    ("answers", "count", ""),
    ("accuracy", "accuracy", "%"),
    ("majority", "majority", "%"),
    ("R@90P", "recall_at_90p", "%"),
    ("R@95P", "recall_at_95p", "%"),
    ("R@99P", "recall_at_99p", "%"),
    ("cov@90P", "coverage_at_90p", "%"),
    ("thr@90P", "threshold_at_90p", "score"),
    ("ECE", "ece", "%"),
)
CHOSEN_ON = {"test": "these answers", "val": "the validation answers"}


def columns() -> list[tuple[str, str, str]]:
    """The columns of the table of attributes, those of added metrics last."""
    known = {key for _, key, _ in _COLUMNS}
    return [*_COLUMNS, *((name, name, "score") for name in OF_PREDICTIONS if name not in known)]


def number(value: float | None, unit: str) -> str:
    """A value as text: unit "%" makes a share a percentage, "score" keeps four digits."""
    if value is None:
        return "-"
    return {"%": f"{100 * value:.1f}%", "score": f"{value:.4f}"}.get(unit) or f"{value:,}"


def attribute_rows(metrics: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Names and formatted cells of every attribute, then those of their mean."""
    rows = sorted(metrics["per_attribute"].items(), key=lambda item: (-item[1]["count"], item[0]))
    mean = dict(metrics["top_k"]["all"], count=metrics["counts"]["labelled"])
    return [
        (name, [number(row.get(key), unit) for _, key, unit in columns()])
        for name, row in [*rows, (f"mean of {len(rows)}", mean)]
    ]


def explain(config: EvalConfig) -> str:
    """What the columns of the table of attributes are."""
    source = CHOSEN_ON[config.threshold_from]
    sure = ""
    if config.bound == "clopper_pearson":
        sure = f", held with probability {1 - config.bound_delta:.0%} (Clopper-Pearson)"
    return (
        f"R@90P is the share of {config.recall_over} questions answered rightly when only"
        f" {config.score} scores from a threshold up are published, and at least 90% of those are"
        f" right{sure}; thr@90P is that threshold, chosen on {source}, and cov@90P the share of all"
        " questions that is then published. majority is the accuracy of always giving the most"
        " frequent value of an attribute, ECE the mean distance between score and accuracy."
    )
