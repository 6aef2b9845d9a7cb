"""Which checkpoints are kept."""

from collections.abc import Callable, Sequence
import dataclasses
import math

from orbax.checkpoint import checkpoint_managers as policies


@dataclasses.dataclass(frozen=True)
class LastAndBest(policies.PreservationPolicy):
    """Keeps the newest and, beside them, the best (the newer one of equals).

    Attributes:
      last: how many of the newest.
      best: how many of the best; those without a score are none of them.
      score: ranks a step, higher is better; minus infinity for no score.
    """

    last: int
    best: int
    score: Callable[[int], float]

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> list[bool]:
        """Says of each checkpoint, oldest first, whether it is kept."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        scores = [(self.score(step), step) for step in steps]
        ranked = sorted((pair for pair in scores if pair[0] > -math.inf), reverse=True)
        kept = {*steps[-self.last :], *(step for _, step in ranked[: self.best])}
        return [step in kept for step in steps]
