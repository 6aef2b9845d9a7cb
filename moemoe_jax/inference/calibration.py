"""Calibration: from a confidence to the share of such answers that are right.

Fitted on validation answers, for all attributes together and, where an attribute has enough
answers, for that attribute alone. Every map is monotone, so calibration can tie answers of one
attribute but never swap them.

Shapes: N answers.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

_METHODS = ("isotonic", "platt", "temperature")
_EPSILON = 1e-6  # keeps the logit of a confidence of 0 or 1 finite


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """How confidences are calibrated.

    `isotonic` fits any monotone curve, `platt` a line on the logit, `temperature` its slope only.
    Attributes with fewer than `min_count` answers use the fit over all attributes.
    """

    method: str = "isotonic"
    per_attribute: bool = True
    min_count: int = 100

    def __post_init__(self):
        if self.method not in _METHODS:
            raise ValueError(
                f"calibration.method is {self.method!r}: choose one of {', '.join(_METHODS)}"
            )
        if self.min_count < 1:
            raise ValueError(f"calibration.min_count {self.min_count} must be at least 1")


def pool_adjacent_violators(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence nearest to `values` in weighted least squares.

    Args:
      values: float [N].
      weights: float [N], positive.

    Returns:
      float64 [N].
    """
    means, masses, sizes = [], [], []
    for value, weight in zip(values, weights, strict=True):
        mean, mass, size = float(value), float(weight), 1
        while means and means[-1] >= mean:  # a block that is not below the next joins it
            other = masses.pop()
            mass += other
            mean += (means.pop() - mean) * other / mass
            size += sizes.pop()
        means.append(mean)
        masses.append(mass)
        sizes.append(size)
    return np.repeat(np.array(means, float), np.array(sizes, int))


def targets(correct: np.ndarray) -> np.ndarray:
    """What bool [N] answers are fitted to: float64 [N], strictly between 0 and 1.

    Platt's `(R + 1) / (R + 2)` and `1 / (W + 2)` for R right and W wrong answers instead of 1 and
    0: three answers that are all right do not show that the next one is, and their fit is finite.
    Of thousands, they are hardly different.
    """
    correct = np.asarray(correct, bool)
    right = int(correct.sum())
    return np.where(correct, (right + 1) / (right + 2), 1 / (correct.size - right + 2))


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear:
    """Monotone map through the knots `(x, y)`, flat outside; without a knot it is the identity."""

    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def __call__(self, confidence: np.ndarray) -> np.ndarray:
        """Maps float [N] to float64 [N]."""
        confidence = np.asarray(confidence, np.float64)
        return np.interp(confidence, self.x, self.y) if self.x else confidence


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """`sigmoid(slope · logit(confidence) + offset)` with a positive slope."""

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, confidence: np.ndarray) -> np.ndarray:
        """Maps float [N] to float64 [N]."""
        return 1.0 / (1.0 + np.exp(-(self.slope * _logit(confidence) + self.offset)))


def fit_isotonic(confidence: np.ndarray, correct: np.ndarray) -> PiecewiseLinear:
    """Isotonic regression of `targets` on `confidence`; equal confidences are one point.

    Args:
      confidence: float [N], in [0, 1].
      correct: bool [N].

    Returns:
      The map through both ends of every constant block, or the identity if N is 0.
    """
    points, inverse, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    if not points.size:
        return PiecewiseLinear()
    right = np.bincount(inverse, weights=targets(correct))
    level = pool_adjacent_violators(right / counts, counts)
    # Inside a constant block only its two ends say anything.
    inner = np.zeros(level.size, bool)
    inner[1:-1] = (level[1:-1] == level[:-2]) & (level[1:-1] == level[2:])
    return PiecewiseLinear(tuple(points[~inner].tolist()), tuple(level[~inner].tolist()))


def fit_sigmoid(
    confidence: np.ndarray, correct: np.ndarray, *, with_offset: bool = True
) -> Sigmoid:
    """Platt scaling on the logit of the confidence, or temperature scaling without the offset.

    Args:
      confidence: float [N], in [0, 1].
      correct: bool [N].
      with_offset: False fixes the offset at 0 (then slope = 1 / temperature).

    Returns:
      The fitted map, or the identity if N is 0.
    """
    from scipy import optimize

    correct = np.asarray(correct, bool)
    if not correct.size:
        return Sigmoid()
    logit = _logit(confidence)
    target = targets(correct)

    def loss(parameters):
        z = parameters[0] * logit + parameters[1]
        residual = 1.0 / (1.0 + np.exp(-z)) - target
        value = np.mean(np.logaddexp(0.0, z) - target * z)
        return value, np.array([np.mean(residual * logit), np.mean(residual)])

    # The slope stays positive: a calibration that swaps answers would undo the ranking.
    bounds = [(1e-3, 1e3), (-50.0, 50.0) if with_offset else (0.0, 0.0)]
    found = optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=bounds)
    return Sigmoid(float(found.x[0]), float(found.x[1]))


def _logit(confidence: np.ndarray) -> np.ndarray:
    confidence = np.clip(np.asarray(confidence, np.float64), _EPSILON, 1.0 - _EPSILON)
    return np.log(confidence) - np.log1p(-confidence)


_MAPS = {"isotonic": PiecewiseLinear, "platt": Sigmoid, "temperature": Sigmoid}


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """A map for all attributes together, and one for each attribute that had enough answers."""

    method: str
    overall: PiecewiseLinear | Sigmoid
    per_attribute: Mapping[str, PiecewiseLinear | Sigmoid] = dataclasses.field(default_factory=dict)

    def __call__(
        self, confidence: np.ndarray, attributes: Sequence[str] | None = None
    ) -> np.ndarray:
        """Calibrates float [N] confidences of answers to N `attributes`: float64 [N] in [0, 1]."""
        confidence = np.asarray(confidence, np.float64)
        calibrated = self.overall(confidence)
        if attributes is None or not self.per_attribute:
            return calibrated
        for name, rows in _rows_by_name(attributes, confidence.size).items():
            if name in self.per_attribute:
                calibrated[rows] = self.per_attribute[name](confidence[rows])
        return calibrated

    @property
    def fitted(self) -> bool:
        """Whether there was an answer to fit it on; else it is the identity."""
        return self.overall != type(self.overall)()

    def to_json(self) -> dict:
        """The calibrator as a dict of JSON types."""
        return {
            "method": self.method,
            "overall": dataclasses.asdict(self.overall),
            "per_attribute": {
                name: dataclasses.asdict(curve) for name, curve in self.per_attribute.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping) -> "Calibrator":
        """Inverse of `to_json`.

        Raises:
          ValueError: the data is not that of a calibrator.
        """
        try:
            build = _MAPS[data["method"]]
            # JSON has lists where the maps hold tuples.
            overall, *others = (
                build(**{k: tuple(v) if isinstance(v, list | tuple) else v for k, v in d.items()})
                for d in (data["overall"], *data["per_attribute"].values())
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"not a saved calibrator ({error!r}): fit it again on the validation answers"
            ) from error
        return cls(data["method"], overall, dict(zip(data["per_attribute"], others, strict=True)))


def fit_calibrator(
    confidence: np.ndarray,
    correct: np.ndarray,
    attributes: Sequence[str] | None = None,
    config: CalibrationConfig | None = None,
) -> Calibrator:
    """Fits a calibrator on validation answers (leave abstentions out: they predict no value).

    Args:
      confidence: float [N], in [0, 1].
      correct: bool [N].
      attributes: N names, or None for a single map.
      config: method, and when an attribute gets its own map.

    Returns:
      A calibrator; with N = 0 it is the identity.

    Raises:
      ValueError: lengths differ, or a confidence is not in [0, 1].
    """
    config = config or CalibrationConfig()
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    if confidence.shape != correct.shape or confidence.ndim != 1:
        raise ValueError(f"{confidence.shape} confidences but {correct.shape} judgements: give [N]")
    if not np.all((confidence >= 0) & (confidence <= 1)):
        raise ValueError("a confidence to calibrate on is not in [0, 1]: check the model's outputs")
    fit = {
        "isotonic": fit_isotonic,
        "platt": fit_sigmoid,
        "temperature": lambda c, y: fit_sigmoid(c, y, with_offset=False),
    }[config.method]
    curves = {}
    if attributes is not None and config.per_attribute:
        for name, rows in _rows_by_name(attributes, confidence.size).items():
            if rows.size >= config.min_count:
                curves[name] = fit(confidence[rows], correct[rows])
    return Calibrator(config.method, fit(confidence, correct), curves)


def _rows_by_name(names: Sequence[str], count: int) -> dict[str, np.ndarray]:
    """Row numbers of every distinct name, in one sort."""
    if len(names) != count:
        raise ValueError(f"{len(names)} attributes for {count} confidences: give one for each")
    if not count:
        return {}
    distinct, code = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    order = np.argsort(code, kind="stable")
    cuts = np.searchsorted(code[order], np.arange(1, distinct.size))
    return dict(zip(distinct.tolist(), np.split(order, cuts), strict=True))
