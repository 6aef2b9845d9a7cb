"""The report's figures: drawn with matplotlib's object API, so that no global state is touched.

Matplotlib is imported on first use; nothing else of evaluation needs it.

Shapes: T thresholds, G bins.
"""

import io

import numpy as np

from moemoe_jax.evaluation.selective import Reliability, Sweep

INK, ACCENT, SECOND, FAINT = "#1f2933", "#2563eb", "#ea580c", "#cbd2d9"
_TARGET = 0.9  # the precision to mark
_POINTS = 400  # a curve of more points looks the same and makes the page heavy


def precision_coverage_figure(curves: dict[str, tuple[Sweep, int]]):
    """Precision of the published answers against the share that is published.

    Args:
      curves: label -> (counts at every threshold [T], number of labelled answers).

    Returns:
      A matplotlib Figure.
    """
    figure, axes = _blank("share of answers published", "precision of what is published")
    lowest = _TARGET
    for color, (label, (curve, labelled)) in zip((ACCENT, SECOND), curves.items(), strict=False):
        if not curve.published.size:
            continue
        keep = np.unique(np.linspace(0, curve.published.size - 1, _POINTS).round().astype(int))
        coverage = curve.published[keep] / labelled
        precision = curve.true_positives[keep] / curve.published[keep]
        marker = "o" if keep.size == 1 else None  # a line of one point would be invisible
        axes.plot(coverage, precision, color=color, linewidth=2, label=label, marker=marker)
        lowest = min(lowest, float(precision.min()))
    axes.axhline(_TARGET, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"{_TARGET:.0%}",
        (1.0, _TARGET),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        color=INK,
        fontsize=9,
    )
    axes.set_xlim(0, 1.005)
    axes.set_ylim(max(0.0, lowest - 0.05), 1.02)
    _finish(figure, axes, "lower left")
    return figure


def reliability_figure(curves: dict[str, Reliability]):
    """Accuracy against mean confidence, bin by bin; dots grow with their bin's answers.

    Args:
      curves: label -> bins [G].

    Returns:
      A matplotlib Figure.
    """
    figure, axes = _blank("mean confidence of bin", "share of bin that is right")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="ideal")
    for color, (label, bins) in zip((ACCENT, SECOND), curves.items(), strict=False):
        if not bins.count.size:
            continue
        axes.plot(bins.confidence, bins.accuracy, color=color, linewidth=1.5, label=label)
        area = 12 + 90 * bins.count / bins.count.max()
        axes.scatter(bins.confidence, bins.accuracy, s=area, color=color, alpha=0.75, linewidth=0)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    _finish(figure, axes, "upper left")
    return figure


def to_svg(figure) -> str:
    """The figure as an <svg> element for inlining; the same figure always gives the same text."""
    import matplotlib as mpl

    buffer = io.StringIO()
    # The salt makes ids repeatable; "none" keeps text as text.
    with mpl.rc_context({"svg.hashsalt": "moemoe", "svg.fonttype": "none"}):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :].strip()


def _blank(x_label: str, y_label: str):
    """An empty figure in the report's style, with its axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(5.4, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(color=FAINT, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    return figure, axes


def _finish(figure, axes, place: str) -> None:
    figure.patch.set_alpha(0.0)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc=place, frameon=False, fontsize=9, labelcolor=INK)
