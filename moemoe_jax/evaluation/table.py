"""Answers as columns: judged once, labelled ones only, sorted by the group they are counted in."""

from collections import Counter
from collections.abc import Iterable, Iterator
import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from moemoe_jax.errors import UserError
from moemoe_jax.evaluation import selective
from moemoe_jax.evaluation.answers import (
    NO_ANSWER,
    ScoredAnswer,
    gold_values,
    is_abstention,
    normalise,
)

EVIDENCE = ("image", "text", "both", "none")
_CHOICES = {
    "score": ("confidence", "calibrated"),
    "group_by": ("attribute", "product_type_attribute"),
    "threshold_from": ("test", "val"),
    "bound": ("none", "clopper_pearson"),
    "recall_over": ("answerable", "labelled"),
    "topk_by": ("count", "value"),
    "ece_binning": selective.BINNINGS,
}


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How answers are judged.

    Attributes:
      score: which number ranks answers: the raw "confidence" or the "calibrated" one. Evaluations
        during training have but the first.
      group_by: what a row of the table is: an attribute, or one attribute of one product type.
      threshold_from: "test" picks each threshold on the evaluated answers themselves (what a single
        published Recall@90P implies); "val" takes thresholds fitted beforehand.
      bound: "clopper_pearson" asks that precision be at least x % with probability 1 - bound_delta
        rather than on the answers at hand. It decides how a threshold is picked.
      bound_delta: see `bound`.
      recall_over: N of recall: "answerable", or "labelled" to count known-to-have-none as well.
      topk: sizes of the groups of top attributes.
      topk_by: top by number of labelled answers ("count") or by Recall@90P ("value").
      ece_bins: number of bins of the calibration error.
      ece_binning: bins of equal "mass" or of equal "width".
      no_answer_text: the answer that means "there is none".
    """

    score: str = "confidence"
    group_by: str = "attribute"
    threshold_from: str = "test"
    bound: str = "none"
    bound_delta: float = 0.05
    recall_over: str = "answerable"
    topk: tuple[int, ...] = (5, 10, 15)
    topk_by: str = "count"
    ece_bins: int = 15
    ece_binning: str = "mass"
    no_answer_text: str = NO_ANSWER

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"evaluation.{name} is {getattr(self, name)!r}: "
                    f"choose one of {', '.join(choices)}"
                )
        if not 0 < self.bound_delta < 1:
            raise ValueError(f"evaluation.bound_delta {self.bound_delta} must be between 0 and 1")
        if self.ece_bins < 1 or any(k < 1 for k in self.topk):
            raise ValueError("evaluation.ece_bins and evaluation.topk must be at least 1")


class AnswerTable(NamedTuple):
    """Labelled answers as columns of equal length, sorted by group."""

    names: list[str]  # of the groups, sorted
    product_types: list[str | None]  # of the groups; None if groups are attributes
    group: np.ndarray  # int, row of `names`
    score: np.ndarray  # float64
    correct: np.ndarray  # bool
    predicted: np.ndarray  # bool, False = abstains
    answerable: np.ndarray  # bool
    evidence: np.ndarray  # int, row of EVIDENCE, or -1
    majority: list[float]  # of the groups, accuracy of the most frequent gold
    unlabelled: int  # how many answers were left out

    @property
    def slices(self) -> list[slice]:
        """The rows of every group."""
        cuts = np.searchsorted(self.group, np.arange(len(self.names) + 1)).tolist()
        return [slice(a, b) for a, b in itertools.pairwise(cuts)]


_ROW = np.dtype(
    [
        ("group", np.int64),
        ("score", np.float64),
        ("correct", bool),
        ("predicted", bool),
        ("answerable", bool),
        ("evidence", np.int64),
    ]
)


class _Judge:
    """Turns answers into rows, and remembers the groups and golds it has seen."""

    def __init__(self, config: EvalConfig):
        self.config = config
        self.codes: dict[tuple[str | None, str], int] = {}
        self.golds: list[Counter] = []
        self.unlabelled = 0

    def rows(self, answers: Iterable[ScoredAnswer]) -> Iterator[tuple]:
        """Yields one `_ROW` per labelled answer."""
        none_text = self.config.no_answer_text
        by_type = self.config.group_by == "product_type_attribute"
        evidence = {name: code for code, name in enumerate(EVIDENCE)}
        for answer in answers:
            if answer.golds is None:
                self.unlabelled += 1
                continue
            score = getattr(answer, self.config.score)
            if score is None:
                raise UserError(
                    f"answer {answer.id!r} to {answer.attribute!r} has no calibrated confidence:"
                    " fit a calibrator first, or set score to confidence"
                )
            key = ((answer.product_type or "?") if by_type else None, answer.attribute)
            if key not in self.codes:
                self.codes[key] = len(self.codes)
                self.golds.append(Counter())
            code = self.codes[key]
            values = gold_values(answer.golds, none_text)
            self.golds[code].update(values or (None,))
            abstains = is_abstention(answer.answer, none_text)
            correct = not values if abstains else normalise(answer.answer) in values
            seen = evidence.get(answer.evidence, -1)
            yield code, score, correct, not abstains, bool(values), seen


def tabulate(answers: Iterable[ScoredAnswer], config: EvalConfig) -> AnswerTable:
    """Judges every answer once, and lays the labelled ones out as columns.

    Raises:
      UserError: the calibrated score is wanted and an answer has none.
    """
    judge = _Judge(config)
    rows = np.fromiter(judge.rows(answers), _ROW)
    keys = sorted(judge.codes, key=lambda key: (key[0] or "", key[1]))
    met = np.array([judge.codes[key] for key in keys], int)  # order of first meeting
    group = np.argsort(met)[rows["group"]]
    order = np.argsort(group, kind="stable")
    rows, group = rows[order], group[order]
    sizes = np.bincount(group, minlength=len(keys)).tolist()
    return AnswerTable(
        names=[name if kind is None else f"{kind} / {name}" for kind, name in keys],
        product_types=[kind for kind, _ in keys],
        group=group,
        score=np.clip(rows["score"], 0.0, 1.0),
        correct=rows["correct"],
        predicted=rows["predicted"],
        answerable=rows["answerable"],
        evidence=rows["evidence"],
        majority=[max(judge.golds[m].values()) / n for m, n in zip(met, sizes, strict=True)],
        unlabelled=judge.unlabelled,
    )
