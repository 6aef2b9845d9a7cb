import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import precision_recall_curve

from moemoe_jax.evaluation.selective import (
    best_point,
    calibration_error,
    point_at,
    reliability,
    risk_coverage_area,
    sweep,
)

SCORE = np.array([0.5, 0.9, 0.5, 0.2])
RIGHT = np.array([False, True, True, True])
EMPTY = np.zeros(0), np.zeros(0, bool)


def small_cases(count=200):
    """Random small inputs with many ties."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        size = rng.integers(1, 25)
        yield rng.integers(0, 8, size) / 8, rng.uniform(size=size) < rng.choice([0.5, 0.9, 1.0])


def test_sweep_by_hand():
    # 0.9 publishes one right; the two at 0.5 enter together, one right; then 0.2.
    curve = sweep(SCORE, RIGHT)
    np.testing.assert_array_equal(curve.threshold, [0.9, 0.5, 0.2])
    np.testing.assert_array_equal(curve.true_positives, [1, 2, 3])
    np.testing.assert_array_equal(curve.published, [1, 3, 4])


@pytest.mark.parametrize(
    ("percent", "threshold", "right"), [(100, 0.9, 1), (75, 0.2, 3), (70, 0.2, 3), (76, 0.9, 1)]
)
def test_best_point_by_hand(percent, threshold, right):
    # Precision is 1/1, 2/3, 3/4 along the sweep: it may rise again, and 3/4 is at least 75 %.
    point = best_point(sweep(SCORE, RIGHT), percent)
    assert (point.threshold, point.true_positives) == (threshold, right)


@pytest.mark.parametrize(("percent", "total"), [(90, 10), (95, 20), (99, 100), (90, 30)])
def test_precision_of_exactly_the_level_qualifies(percent, total):
    right = np.arange(total) < total * percent // 100
    point = best_point(sweep(np.full(total, 0.5), right), percent)
    assert point.published == total
    right[0] = False
    assert best_point(sweep(np.full(total, 0.5), right), percent).threshold is None


def test_among_equally_many_right_the_highest_threshold_is_chosen():
    # 10 right at 0.9, then one wrong at 0.5: 10/11 still passes 90 %, but gains nothing.
    point = best_point(sweep(np.array([0.9] * 10 + [0.5]), np.array([True] * 10 + [False])), 90)
    assert (point.threshold, point.published) == (0.9, 10)


def test_best_point_agrees_with_trying_every_threshold():
    for score, right in small_cases():
        for percent in (60, 90, 95):
            best = 0
            for threshold in score:
                kept = score >= threshold
                if 100 * right[kept].sum() >= percent * kept.sum():
                    best = max(best, right[kept].sum())
            point = best_point(sweep(score, right), percent)
            assert point.true_positives == best
            assert point == point_at(score, right, point.threshold)


def test_best_point_agrees_with_sklearn():
    # Its recall is over the right predictions, ours over N answers: TP/N = recall · right/N.
    for score, right in small_cases():
        if right.any():
            precision, recall, _ = precision_recall_curve(right, score)
            theirs = recall[precision >= 0.9 - 1e-12].max() * right.sum()
            ours = best_point(sweep(score, right), 90).true_positives
            assert ours == pytest.approx(theirs)


def test_safe_threshold_by_hand():
    # All right: the bound over n answers is (delta/J)^(1/n). 28 of them prove nothing at 90 %:
    # 0.05^(1/28) = 0.8985. At 29, 0.05^(1/29) = 0.9019.
    def published(n):
        return best_point(sweep(np.linspace(1, 0.5, n), np.ones(n, bool)), 90, 0.05).published

    assert published(28) == 0
    assert published(29) == 29


def test_safe_bound_is_clopper_pearson():
    # One distinct score gives one candidate, so delta is not shared out: 96 of 100 right has a
    # lower bound of 0.9108, 95 one of 0.8977.
    for right, passes in ((96, True), (95, False)):
        point = best_point(sweep(np.full(100, 0.7), np.arange(100) < right), 90, 0.05)
        bound = stats.binomtest(right, 100, alternative="greater").proportion_ci(0.95).low
        assert (point.threshold is not None) == passes == (bound >= 0.9)


def test_safe_threshold_misses_the_precision_as_rarely_as_promised():
    # The true chance of being right is 2 s for s < 0.5 and 0.91 above: near the level everywhere.
    rng = np.random.default_rng(0)
    missed = {None: 0, 0.1: 0}
    for _ in range(200):
        score = rng.uniform(size=400)
        chance = np.where(score < 0.5, 2 * score * 0.91, 0.91)
        right = rng.uniform(size=400) < chance
        for delta in missed:
            point = best_point(sweep(score, right), 90, delta)
            if point.threshold is not None:
                missed[delta] += chance[score >= point.threshold].mean() < 0.9
    assert missed[0.1] <= 0.1 * 200
    assert missed[None] > 0.3 * 200  # why one wants the bound


def test_calibration_error_by_hand():
    # Two bins of two: mean 0.3, accuracy 0.5; mean 0.8, accuracy 1. (0.2 + 0.2) / 2 = 0.2.
    score, right = np.array([0.2, 0.4, 0.7, 0.9]), np.array([True, False, True, True])
    for binning in ("mass", "width"):
        bins = reliability(score, right, 2, binning)
        np.testing.assert_allclose(bins.confidence, [0.3, 0.8])
        np.testing.assert_allclose(bins.accuracy, [0.5, 1.0])
        assert calibration_error(bins) == pytest.approx(0.2)


def test_bins_do_not_depend_on_the_order_of_ties():
    for score, right in small_cases(30):
        order = np.random.default_rng(1).permutation(score.size)
        for binning in ("mass", "width"):
            one = reliability(score, right, 5, binning)
            two = reliability(score[order], right[order], 5, binning)
            for a, b in zip(one, two, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-12)
            assert one.count.sum() == score.size


def test_ends_of_the_unit_interval_have_bins():
    assert reliability(np.array([0.0, 1.0]), np.array([False, True]), 15, "width").count.sum() == 2


def test_risk_coverage_area_by_hand():
    # Risks along the sweep 0, 1/3 (twice: a tie), 1/4; their mean is (0 + 2/3 + 1/4) / 4 = 11/48.
    assert risk_coverage_area(sweep(SCORE, RIGHT)) == pytest.approx(11 / 48)


def test_without_predictions_nothing_is_defined():
    assert best_point(sweep(*EMPTY), 90).threshold is None
    assert best_point(sweep(*EMPTY), 90, 0.05).precision is None
    assert calibration_error(reliability(*EMPTY)) is None
    assert risk_coverage_area(sweep(*EMPTY)) is None


def test_an_unknown_binning_is_refused():
    with pytest.raises(ValueError, match="binning 'log' is unknown"):
        reliability(SCORE, RIGHT, 2, "log")
