import json

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from moemoe_jax.evaluation.selective import calibration_error, reliability
from moemoe_jax.inference.calibration import (
    CalibrationConfig,
    Calibrator,
    fit_calibrator,
    fit_isotonic,
    pool_adjacent_violators,
    targets,
)

METHODS = ("isotonic", "platt", "temperature")


def overconfident(seed: int, count: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Answers that claim sigmoid(z) and are right with probability sigmoid(z / 2)."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 3, count)
    correct = rng.uniform(size=count) < 1 / (1 + np.exp(-logit / 2))
    return 1 / (1 + np.exp(-logit)), correct


def ece(confidence, correct):
    return calibration_error(reliability(confidence, correct))


def test_violators_are_pooled_by_hand():
    # 3 and 1 (weight 1 and 3) pool to (3 + 3) / 4 = 1.5; 0 stays below; 2 stays above.
    pooled = pool_adjacent_violators(np.array([0.0, 3.0, 1.0, 2.0]), np.array([1, 1, 3, 1]))
    np.testing.assert_allclose(pooled, [0.0, 1.5, 1.5, 2.0])


def test_pooling_agrees_with_sklearn_also_where_confidences_tie():
    rng = np.random.default_rng(0)
    for _ in range(20):
        confidence = rng.integers(0, 8, 30) / 8
        correct = rng.uniform(size=30) < confidence
        queries = np.linspace(-0.1, 1.1, 25)
        theirs = IsotonicRegression(out_of_bounds="clip").fit(confidence, targets(correct))
        np.testing.assert_allclose(
            fit_isotonic(confidence, correct)(queries), theirs.predict(queries), atol=1e-9
        )


@pytest.mark.parametrize("method", METHODS)
def test_calibration_is_monotone_and_improves_the_error_on_new_answers(method):
    calibrator = fit_calibrator(*overconfident(0), config=CalibrationConfig(method))
    confidence, correct = overconfident(1)
    calibrated = calibrator(confidence)
    assert np.all(np.diff(calibrated[np.argsort(confidence)]) >= 0)
    assert calibrated.min() >= 0 and calibrated.max() <= 1
    assert ece(confidence, correct) > 0.09
    assert ece(calibrated, correct) < 0.04


def test_temperature_recovers_a_known_one():
    # sigmoid(z) is told where sigmoid(z / 2) is true: the slope on the logit is 1/2.
    calibrator = fit_calibrator(*overconfident(2, 20000), config=CalibrationConfig("temperature"))
    assert calibrator.overall.slope == pytest.approx(0.5, abs=0.03)
    assert calibrator.overall.offset == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("right", [True, False])
def test_answers_all_right_or_all_wrong_have_a_finite_fit(method, right):
    confidence = np.array([0.0, 0.5, 0.9, 1.0])
    calibrator = fit_calibrator(confidence, np.full(4, right), config=CalibrationConfig(method))
    calibrated = calibrator(np.linspace(0, 1, 11))
    assert np.all(np.isfinite(calibrated)) and np.all(np.diff(calibrated) >= 0)
    if method == "isotonic":
        np.testing.assert_allclose(calibrated, np.full(11, 5 / 6 if right else 1 / 6))


@pytest.mark.parametrize("method", METHODS)
def test_three_answers_prove_nothing(method):
    # Two right of three: the targets are 3/4 and 1/3.
    calibrator = fit_calibrator(
        [0.2, 0.8, 0.9], [False, True, True], config=CalibrationConfig(method)
    )
    calibrated = calibrator(np.array([0.1, 0.2, 0.8, 0.9]))
    assert calibrated.min() > 0.001 and calibrated.max() < 0.999
    if method == "isotonic":
        np.testing.assert_allclose(calibrated, [1 / 3, 1 / 3, 3 / 4, 3 / 4])
    np.testing.assert_allclose(targets([True] * 999 + [False]), [1000 / 1001] * 999 + [1 / 3])


@pytest.mark.parametrize("method", METHODS)
def test_without_answers_it_is_the_identity(method):
    calibrator = fit_calibrator([], [], [], CalibrationConfig(method))
    np.testing.assert_allclose(calibrator(np.array([0.2, 0.7])), [0.2, 0.7])
    assert calibrator(np.zeros(0), []).shape == (0,)


def test_attributes_with_enough_answers_have_a_map_of_their_own():
    # Targets of color are 3/4 and of size 1/4; fit has too few answers and gets the mean of all
    # five, of 3/4 twice and 1/5 thrice: 2.1 / 5.
    names = ["color", "color", "size", "size", "fit"]
    correct = np.array([True, True, False, False, False])
    calibrator = fit_calibrator(np.full(5, 0.8), correct, names, CalibrationConfig(min_count=2))
    np.testing.assert_allclose(
        calibrator(np.full(4, 0.8), ["size", "fit", "color", "never seen"]),
        [0.25, 0.42, 0.75, 0.42],
    )
    one = fit_calibrator(np.full(5, 0.8), correct, names, CalibrationConfig(per_attribute=False))
    np.testing.assert_allclose(one(np.array([0.8]), ["color"]), [0.42])


@pytest.mark.parametrize("method", METHODS)
def test_json_round_trip(method):
    confidence, correct = overconfident(3, 200)
    names = ["color", "neck"] * 100
    calibrator = fit_calibrator(confidence, correct, names, CalibrationConfig(method, min_count=50))
    again = Calibrator.from_json(json.loads(json.dumps(calibrator.to_json())))
    assert again == calibrator
    np.testing.assert_array_equal(again(confidence, names), calibrator(confidence, names))


def test_nonsense_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"calibration\.method is 'beta': choose one of isotonic"):
        CalibrationConfig("beta")
    with pytest.raises(ValueError, match="min_count 0 must be at least 1"):
        CalibrationConfig(min_count=0)
    with pytest.raises(ValueError, match="not in \\[0, 1\\]"):
        fit_calibrator([np.nan], [True])
    with pytest.raises(ValueError, match="1 attributes for 2 confidences"):
        fit_calibrator([0.1, 0.2], [True, False], ["color"])
    with pytest.raises(ValueError, match="not a saved calibrator"):
        Calibrator.from_json({"method": "isotonic"})
