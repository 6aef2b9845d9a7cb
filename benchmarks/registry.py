"""The rows of the table, and what each must reach.

To add one, write a function of a `Context` in a file of `benchmarks.rows` that returns `Samples`,
and name it here.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

SIZES = ("tiny", "small", "base")


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a row must reach; costs are seconds, bytes, counts: less is better.

    Attributes:
      kind: "faster": their cost over ours is at least `limit`; "at most": our cost over theirs is
        at most `limit`; "within": ours over theirs is off one by at most `limit`.
      limit: see `kind`.
    """

    kind: str
    limit: float

    def ratio(self, ours: float, theirs: float) -> float:
        """The number that is compared with the limit, or with one."""
        over, under = (theirs, ours) if self.kind == "faster" else (ours, theirs)
        return over / under if under else float("inf")

    def met(self, ratio: float) -> bool:
        """Whether a ratio reaches it."""
        if self.kind == "within":
            return abs(ratio - 1.0) <= self.limit
        return ratio >= self.limit if self.kind == "faster" else ratio <= self.limit

    def __str__(self) -> str:
        if self.kind == "within":
            return f"1 ± {self.limit:g}"
        return f"≥ {self.limit:g}" if self.kind == "faster" else f"≤ {self.limit:g}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      name: to choose it by.
      what: is measured.
      against: what it is compared with.
      bar: what the ratio must reach.
      measure: "file:function" in `benchmarks.rows`; gets a `Context`.
      arguments: that it gets besides.
    """

    name: str
    what: str
    against: str
    bar: Bar
    measure: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _faster(limit: float) -> Bar:
    return Bar("faster", limit)


def _at_most(limit: float) -> Bar:
    return Bar("at most", limit)


_HF = "Hugging Face generate"
_CT2 = "CTranslate2 float32"
_TRAIN = "training:against_peer"
_GENERATE = "generation:against"

_ALL = (
    Row(
        "train_1",
        "training, 1 question a product",
        "PyTorch, same batch",
        _faster(1.3),
        _TRAIN,
        {"questions": 1},
    ),
    Row(
        "train_6",
        "training, 6 questions a product",
        "PyTorch",
        _faster(3),
        _TRAIN,
        {"questions": 6},
    ),
    Row(
        "train_6_of_16",
        "training, 6 questions a product, 16 different ones a batch",
        "PyTorch",
        _faster(3),
        _TRAIN,
        {"questions": 6, "distinct": 16},
    ),
    Row(
        "train_38",
        "training, 38 questions a product",
        "PyTorch",
        _faster(6),
        _TRAIN,
        {"questions": 38},
    ),
    Row(
        "answer_38",
        "answering 38 questions a product",
        "PyTorch generate, its best batch",
        _faster(10),
        "answering:against_peer",
    ),
    Row(
        "greedy_hf",
        "greedy generation, a plain T5",
        _HF,
        _faster(1.5),
        _GENERATE,
        {"peer": "transformers", "beams": 1},
    ),
    Row(
        "beams_hf",
        "beam-4 generation, a plain T5",
        _HF,
        _faster(1.5),
        _GENERATE,
        {"peer": "transformers", "beams": 4},
    ),
    Row(
        "greedy_ct2",
        "greedy generation, a plain T5",
        _CT2,
        _faster(0.7),
        _GENERATE,
        {"peer": "ctranslate2", "beams": 1},
    ),
    Row(
        "beams_ct2",
        "beam-4 generation, a plain T5",
        _CT2,
        _faster(0.7),
        _GENERATE,
        {"peer": "ctranslate2", "beams": 4},
    ),
    Row(
        "moe_layer",
        "layer of 8 experts, top 2, with its gradient",
        "dense, same active FLOPs, ours",
        _at_most(1.25),
        "mixture:against_dense",
    ),
    Row(
        "moe_64",
        "layer of 64 experts, top 2, with its gradient",
        "8 experts, ours",
        _at_most(1.25),
        "mixture:against_fewer",
    ),
    Row(
        "experts_only",
        "step that trains the experts alone",
        "full step, ours",
        _at_most(0.45),
        "frozen:against_full",
        {"variant": "experts"},
    ),
    Row(
        "experts_kept",
        "the same on encodings that are kept",
        "full step, ours",
        _at_most(0.25),
        "frozen:against_full",
        {"variant": "kept"},
    ),
    Row(
        "second_start",
        "start to first step, programs kept",
        "first start, ours",
        _at_most(0.35),
        "starting:second_start",
    ),
    Row(
        "recompiled_train",
        "compilations in the second half of a training",
        "none",
        _at_most(0),
        "compilations:training",
    ),
    Row(
        "recompiled_answer",
        "compilations in a second pass over records of all lengths",
        "none",
        _at_most(0),
        "compilations:answering",
    ),
    Row(
        "memory_1",
        "peak memory of training, 1 question a product",
        "PyTorch, same batch",
        _at_most(1),
        "memory:against_peer",
        {"questions": 1},
    ),
    Row(
        "memory_6",
        "peak memory of training, 6 questions a product",
        "PyTorch",
        _at_most(1),
        "memory:against_peer",
        {"questions": 6},
    ),
    Row(
        "flops",
        "matrix products of the compiled step",
        "formula",
        Bar("within", 0.02),
        "flops:against_formula",
    ),
    Row(
        "images",
        "images decoded and resized",
        "torch DataLoader with Pillow",
        _faster(2),
        "images:against_loader",
    ),
    Row(
        "input_wait",
        "wait for input while training",
        "time of the steps",
        _at_most(0.02),
        "input_wait:share",
    ),
)
ROWS = {row.name: row for row in _ALL}
