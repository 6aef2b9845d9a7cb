"""Settings of answering."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class AnswerConfig:
    """How questions are answered.

    Attributes:
      confidence: what an answer's confidence is, a name of `inference.confidence`.
      products_per_batch: products decoded at a time.
      beams: answers that are followed at a time; 1 takes the most probable token each time.
      length_penalty: of beams: Σ log p is divided by this power of an answer's length.
      early_stopping: of beams, a name in `inference.beam.EARLY_STOPPINGS`: "true" stops at the
        first `beams` answers, "false" where no better one is likely, "never" where none can be.
      alternatives: how many other answers are told beside the best, at most `beams` - 1.
      window: records that `launch.predict` reads, sorts by length and writes at a time.
      lengths: of how many lengths texts may be in `launch.predict`: text_length, half of it, a
        quarter... Used where padding changes no answer; see `inference.buckets`.
    """

    confidence: str = "prod"
    products_per_batch: int = 64
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: str = "false"
    alternatives: int = 0
    window: int = 512
    lengths: int = 3

    def __post_init__(self):
        # Here, so that a command's --help can list the settings without importing JAX.
        from moemoe_jax.inference.beam import EARLY_STOPPINGS
        from moemoe_jax.inference.confidence import CONFIDENCES

        for name, known in (("confidence", CONFIDENCES), ("early_stopping", EARLY_STOPPINGS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"answer.{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}"
                )
        for name in ("products_per_batch", "beams", "window", "lengths"):
            if getattr(self, name) < 1:
                raise ValueError(f"answer.{name} must be at least 1")
        if not 0 <= self.alternatives < self.beams:
            raise ValueError(
                f"answer.alternatives is {self.alternatives} with answer.beams={self.beams}; set "
                f"answer.beams={max(self.alternatives, 0) + 1} or more, or fewer alternatives"
            )

    def scored_by(self) -> dict[str, Any]:
        """What decides answers and how sure they are: a calibration fits no others."""
        names = ["confidence", "beams"]
        if self.beams > 1:
            names += ["length_penalty", "early_stopping"]
        return {name: getattr(self, name) for name in names}
