"""Selective prediction on arrays: what happens when only the surest answers are published.

A threshold t publishes the predictions with score >= t. Of M predictions, PP(t) are published and
TP(t) of those are right. Answers with the same score are published together or not at all, so
only distinct scores are thresholds.

Shapes: M predictions, T distinct scores, G bins.
"""

from typing import NamedTuple

import numpy as np

BINNINGS = ("mass", "width")


class Sweep(NamedTuple):
    """Counts at every distinct score, from the highest down; arrays [T]."""

    threshold: np.ndarray  # float64, falling
    true_positives: np.ndarray  # int64, TP
    published: np.ndarray  # int64, PP


def sweep(score: np.ndarray, correct: np.ndarray) -> Sweep:
    """Counts what every threshold publishes.

    Args:
      score: float [M].
      correct: bool [M].
    """
    order = np.argsort(-score, kind="stable")
    score = score[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)[: score.size])
    right = np.cumsum(correct[order], dtype=np.int64)
    return Sweep(score[last], right[last], last + 1)


class OperatingPoint(NamedTuple):
    """What one threshold gives; `threshold` None publishes nothing."""

    threshold: float | None
    true_positives: int = 0
    published: int = 0

    @property
    def precision(self) -> float | None:
        """TP / PP, or None if nothing is published."""
        return self.true_positives / self.published if self.published else None


def best_point(curve: Sweep, percent: float, delta: float | None = None) -> OperatingPoint:
    """The threshold with most right answers among those whose precision is at least `percent`.

    Of thresholds with equally many right answers, the highest: it publishes fewest wrong ones.

    With `delta` the precision is not the observed one but its Clopper-Pearson lower bound, at the
    thresholds that publish about all, 1/2, 1/4... of the predictions. Each of these J bounds holds
    with probability 1 - delta/J, so whichever is picked, the true precision is below `percent`
    with probability at most `delta`. Too few answers for any bound: nothing is published.

    Args:
      curve: from `sweep`.
      percent: required precision, in percent.
      delta: accepted probability of missing it, or None to trust the observed precision.
    """
    if not curve.published.size:
        return OperatingPoint(None)
    if delta is None:
        # In whole numbers, because 0.9 is no binary fraction and 9 of 10 must pass.
        passes = np.flatnonzero(100 * curve.true_positives >= percent * curve.published)
    else:
        passes = _safe_thresholds(curve, percent / 100, delta)
    if not passes.size:
        return OperatingPoint(None)
    # TP never falls along the sweep: the last that passes has the most, the first equal is better.
    most = curve.true_positives[passes[-1]]
    best = passes[np.searchsorted(curve.true_positives[passes], most)]
    return OperatingPoint(
        float(curve.threshold[best]), int(curve.true_positives[best]), int(curve.published[best])
    )


def _safe_thresholds(curve: Sweep, precision: float, delta: float) -> np.ndarray:
    from scipy import stats

    # Fewer than this many answers, all right, still prove nothing at level delta.
    fewest = np.log(delta) / np.log(precision)
    halvings = int(np.log2(max(curve.published[-1] / fewest, 1.0)))
    levels = curve.published[-1] // 2 ** np.arange(halvings, -1, -1)
    index = np.unique(np.searchsorted(curve.published, levels, side="right") - 1)
    index = index[index >= 0]
    right = curve.true_positives[index]
    wrong = curve.published[index] - right
    lower = np.where(
        right > 0, stats.beta.ppf(delta / index.size, np.maximum(right, 1), wrong + 1), 0.0
    )
    return index[lower >= precision]


def point_at(score: np.ndarray, correct: np.ndarray, threshold: float | None) -> OperatingPoint:
    """What a threshold chosen elsewhere gives on these predictions (float [M], bool [M])."""
    if threshold is None:
        return OperatingPoint(None)
    kept = score >= threshold
    return OperatingPoint(threshold, int(np.sum(correct & kept)), int(np.sum(kept)))


class Reliability(NamedTuple):
    """Confidence against accuracy in bins; arrays [G], empty bins left out."""

    confidence: np.ndarray  # mean
    accuracy: np.ndarray
    count: np.ndarray


def reliability(
    score: np.ndarray, correct: np.ndarray, bins: int = 15, binning: str = "mass"
) -> Reliability:
    """Groups predictions of like confidence.

    Args:
      score: float [M], in [0, 1].
      correct: bool [M].
      bins: how many.
      binning: "mass" gives every bin about M / bins predictions (equal scores stay together, in
        the bin of their mean rank); "width" cuts [0, 1] into equal parts.

    Raises:
      ValueError: the binning is unknown.
    """
    if binning not in BINNINGS:
        raise ValueError(f"binning {binning!r} is unknown: choose one of {', '.join(BINNINGS)}")
    if not score.size:
        return Reliability(*(np.zeros(0) for _ in range(3)))
    if binning == "mass":
        _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
        middle = np.cumsum(counts) - counts / 2
        index = np.floor(middle / score.size * bins).astype(int)[inverse]
    else:
        index = np.floor(score * bins).astype(int)
    index = np.clip(index, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    full = count > 0
    mean = np.bincount(index, score, bins)[full] / count[full]
    right = np.bincount(index, correct.astype(float), bins)[full] / count[full]
    return Reliability(mean, right, count[full])


def calibration_error(bins: Reliability) -> float | None:
    """ECE: mean over predictions of |accuracy - confidence| of their bin; None without any."""
    if not bins.count.size:
        return None
    gap = np.abs(bins.accuracy - bins.confidence)
    return float(np.sum(gap * bins.count) / np.sum(bins.count))


def risk_coverage_area(curve: Sweep) -> float | None:
    """AURC: share of wrong answers above the threshold, averaged over all predictions' scores.

    0 is perfect. Returns None without predictions.
    """
    if not curve.published.size:
        return None
    risk = 1.0 - curve.true_positives / curve.published
    ties = np.diff(curve.published, prepend=0)
    return float(np.sum(risk * ties) / curve.published[-1])
