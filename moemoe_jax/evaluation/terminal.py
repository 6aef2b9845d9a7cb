"""An evaluation as text for a terminal."""

from collections.abc import Mapping
from typing import Any

from moemoe_jax.evaluation.columns import CHOSEN_ON, attribute_rows, columns, number

_NAME = 40  # characters of an attribute's name, or of a question in words, that are shown


def format_table(metrics: Mapping[str, Any]) -> str:
    """Aligned per-attribute table for a terminal, most answers first, with a row of means.

    Args:
      metrics: from `metrics.evaluate`.
    """
    rows = attribute_rows(metrics)
    lines = [["attribute", *(heading for heading, _, _ in columns())]]
    lines += [[_short(_printable(name)), *cells] for name, cells in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def align(line):
        cells = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        return "  ".join([line[0].ljust(widths[0]), *cells]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    text = [align(line) for line in lines]
    return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])


def format_evidence(metrics: Mapping[str, Any]) -> str:
    """One line for each place where the evidence can be; empty where the records do not say."""
    return "\n".join(
        f"evidence {name:6} {row['count']:7} questions   accuracy {number(row['accuracy'], '%')}"
        for name, row in metrics["by_evidence"].items()
    )


def format_thresholds(metrics: Mapping[str, Any]) -> str:
    """A line for each way to choose thresholds; empty where there are no validation thresholds."""
    if "val" not in metrics["by_threshold"]:
        return ""
    return "\n".join(
        f"thresholds chosen on {CHOSEN_ON[name]:22}  R@90P {number(row['recall_at_90p'], '%'):>6}"
        f"   right of the published {number(row['precision_at_90p'], '%'):>6}"
        for name, row in metrics["by_threshold"].items()
    )


def format_means(metrics: Mapping[str, Any]) -> str:
    """The two means over attributes; "-" for recall where no question has an answer."""
    names = ("accuracy", "recall_at_90p")
    return "  ".join(f"{name} {number(metrics[name], 'score')}" for name in names)


def _printable(text: str) -> str:
    """Without control characters, which could drive the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _short(name: str) -> str:
    """A name cut for a column, as questions in words are long."""
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"
