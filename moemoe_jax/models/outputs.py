"""What a forward pass of the whole model gives: scores, losses and statistics.

Shapes: P products, Q questions per product, S sources, L answer tokens, D width, V vocabulary.
"""

from flax import struct
import jax

from moemoe_jax.nn.moe import MoEStats
from moemoe_jax.nn.t5 import scores

Stats = dict[str, MoEStats]


@struct.dataclass
class Outputs:
    """What a training step needs of a forward pass.

    Attributes:
      hidden: float [P, Q, L, D], the decoder's last hidden states, ready for the vocabulary.
      vocabulary: float [D, V], by which they are scored.
      alignment: float32 [S], the alignment loss of each source (eqs 6-7); empty without a question
        encoder, or where it was not asked for.
      alignment_variance: float32 [1 + S], of the alignment vectors of the questions and of each
        source over the batch; empty likewise.
      source_weights: float32 [P, Q, S], the mean weight of each source over the tokens where it
        counts (eq 4).
      moe: statistics of each mixture layer, by "stack/layer".
    """

    hidden: jax.Array
    vocabulary: jax.Array
    alignment: jax.Array
    alignment_variance: jax.Array
    source_weights: jax.Array
    moe: Stats

    @property
    def logits(self) -> jax.Array:
        """The scores of all words at once, float32 [P, Q, L, V]."""
        return scores(self.hidden, self.vocabulary)
