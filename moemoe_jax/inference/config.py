"""Settings of answering."""

import dataclasses

from moemoe_jax.inference.confidence import CONFIDENCES


@dataclasses.dataclass(frozen=True)
class AnswerConfig:
    """How questions are answered.

    Attributes:
      confidence: what an answer's confidence is, a name of `inference.confidence`.
      products_per_batch: products decoded at a time.
    """

    confidence: str = "prod"
    products_per_batch: int = 64

    def __post_init__(self):
        if self.confidence not in CONFIDENCES:
            raise ValueError(
                f"answer.confidence is {self.confidence!r}; choose one of {', '.join(CONFIDENCES)}"
            )
        if self.products_per_batch < 1:
            raise ValueError("answer.products_per_batch must be at least 1")
