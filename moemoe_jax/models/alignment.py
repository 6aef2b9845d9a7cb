"""Question-source alignment, eqs 6-7: the question's vector is pulled towards each source's.

Each token of the question and of a source is projected to one number, so a text of K tokens
becomes a vector of K; the loss of a pair is |1 − cos|. The projection has no bias: with one,
constant vectors would make every cosine 1 and the loss trivially 0.

Shapes: P products, Q questions per product, U distinct questions, S sources, K tokens, D width.
"""

from collections.abc import Callable
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from moemoe_jax.models.fusion import Encoded, extend_text, mean_pool
from moemoe_jax.nn.linear import Linear
from moemoe_jax.nn.rows import REPEATS


@dataclasses.dataclass(frozen=True)
class AlignmentConfig:
    """The readings of the alignment losses.

    Attributes:
      reduce: "token_linear", the paper's projection of each token to one number, or "mean_pool",
        the mean over the real tokens, a vector of D.
      loss: "cosine" = |1 − cos|, or "infonce", in which the sources of products that are not asked
        the question are the negatives, so that the vectors cannot all collapse to one.
      share_projection: one projection for the question and all sources, instead of one each.
      mask_padding: compare only the tokens that are real in both. Otherwise padding, most of a
        short question, dominates the cosine.
      temperature: of "infonce".
    """

    reduce: str = "token_linear"
    loss: str = "cosine"
    share_projection: bool = False
    mask_padding: bool = True
    temperature: float = 0.1

    def __post_init__(self):
        if self.reduce not in REDUCTIONS:
            raise ValueError(
                f"model.alignment.reduce is {self.reduce!r}; choose one of {', '.join(REDUCTIONS)}"
            )
        if self.loss not in LOSSES:
            raise ValueError(
                f"model.alignment.loss is {self.loss!r}; choose one of {', '.join(LOSSES)}"
            )
        if self.temperature <= 0:
            raise ValueError(f"model.alignment.temperature is {self.temperature}; it must be > 0")


def pair_cosines(
    question: jax.Array,
    question_valid: jax.Array,
    source: jax.Array,
    source_valid: jax.Array,
) -> jax.Array:
    """The cosine of every question with every product's source, over the tokens real in both.

    Args:
      question: float [U, N], one vector a question.
      question_valid: bool [U, N].
      source: float [P, N], one vector a product.
      source_valid: bool [P, N].

    Returns:
      float32 [P, U]. A pair without a common token has cosine 0.
    """
    question = jnp.where(question_valid, question, 0.0).astype(jnp.float32)
    source = jnp.where(source_valid, source, 0.0).astype(jnp.float32)
    dot = source @ question.T
    # Each norm runs over the tokens that the partner has as well.
    norm_question = source_valid.astype(jnp.float32) @ (question**2).T
    norm_source = (source**2) @ question_valid.astype(jnp.float32).T
    squared = norm_question * norm_source
    empty = squared <= 1e-24
    return jnp.where(empty, 0.0, dot * jax.lax.rsqrt(jnp.where(empty, 1.0, squared)))


def cosine_loss(
    cosines: jax.Array, index: jax.Array, asked: jax.Array, present: jax.Array, temperature: float
) -> jax.Array:
    """|1 − cos| of each pair (eqs 6-7): float32 [P, Q] from `cosines` [P, U]."""
    del asked, present, temperature
    return jnp.abs(1.0 - jnp.take_along_axis(cosines, index, axis=1))


def infonce_loss(
    cosines: jax.Array, index: jax.Array, asked: jax.Array, present: jax.Array, temperature: float
) -> jax.Array:
    """Cross-entropy of a pair against the products that are not asked its question.

    Products that are asked the same question share its vector, so they are no negatives; a question
    that every product of the batch is asked has loss 0. Nor is a product without the source.

    Args:
      cosines: float32 [P, U].
      index: int [P, Q].
      asked: bool [P, Q].
      present: bool [P], the products that have the source.
      temperature: what cosines are divided by.

    Returns:
      float32 [P, Q].
    """
    products, distinct = cosines.shape
    excluded = jnp.broadcast_to(~present[:, None], (products, distinct))
    excluded = excluded.at[jnp.arange(products)[:, None], index].max(asked)
    logits = cosines / temperature
    negatives = jax.nn.logsumexp(jnp.where(excluded, -1e9, logits), axis=0)  # [U]
    positive = jnp.take_along_axis(logits, index, axis=1)
    return jnp.logaddexp(positive, negatives[index]) - positive


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cosine": cosine_loss,
    "infonce": infonce_loss,
}


def variance(vectors: jax.Array, present: jax.Array) -> jax.Array:
    """The variance of [P, N] over the products present, a mean over N: for the log alone."""
    vectors = jax.lax.stop_gradient(vectors).astype(jnp.float32)
    spread = jnp.mean(jnp.var(vectors, axis=0, where=present[:, None]))
    return jnp.where(jnp.any(present), spread, 0.0)


class TokenProjection(nnx.Module):
    """Dense(D → 1) per token, without a bias: K tokens become a vector of K."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(width**-0.5)
        # Not split: for its gradient, all of the batch would be.
        self.score = Linear(width, 1, rngs=rngs, init=init, dtype="float32")

    def __call__(self, encoded: Encoded, mask_padding: bool) -> tuple[jax.Array, jax.Array]:
        """Returns vectors [B, K] and which of their entries count, bool [B, K]."""
        valid = encoded.valid if mask_padding else jnp.ones_like(encoded.valid)
        scores = self.score(encoded.rows)[..., 0]
        return REPEATS[encoded.repeat].spread(scores, valid.shape[1]), valid


class MeanPool(nnx.Module):
    """The mean over the real tokens: K tokens become a vector of D. No parameters."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        pass

    def __call__(self, encoded: Encoded, mask_padding: bool) -> tuple[jax.Array, jax.Array]:
        """Returns vectors [B, D] and which of their entries count: all."""
        kept = encoded if mask_padding else encoded.replace(valid=jnp.ones_like(encoded.valid))
        vectors = mean_pool(kept)
        return vectors, jnp.ones(vectors.shape, bool)


REDUCTIONS: dict[str, type[nnx.Module]] = {"token_linear": TokenProjection, "mean_pool": MeanPool}


class Alignment(nnx.Module):
    """The alignment losses of a question with each of its product's sources."""

    def __init__(self, config: AlignmentConfig, sources: int, width: int, *, rngs: nnx.Rngs):
        self.config = config
        self.count = sources
        copies = 1 if config.share_projection else sources + 1
        self.reduce = nnx.List([REDUCTIONS[config.reduce](width, rngs=rngs) for _ in range(copies)])

    def __call__(
        self,
        question: Encoded,
        index: jax.Array,
        asked: jax.Array,
        sources: tuple[Encoded, ...],
        present: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """The loss of each source, a mean over the asked questions of products that have it.

        Args:
          question: U distinct questions, of J <= K tokens.
          index: int [P, Q], which of them a product is asked.
          asked: bool [P, Q], False for padding questions.
          sources: S encodings of P products, of K tokens each.
          present: bool [P, S].

        Returns:
          float32 [S] losses (eqs 6-7), and float32 [S] variances of the sources' vectors over the
          products that have them: one that tends to zero is a collapse.
        """
        config = self.config
        last = len(self.reduce) - 1
        q, q_valid = self.reduce[0](
            extend_text(question, sources[0].valid.shape[1]), config.mask_padding
        )
        losses, spreads = [], []
        for s, source in enumerate(sources):
            vector, valid = self.reduce[min(s + 1, last)](source, config.mask_padding)
            cosines = pair_cosines(q, q_valid, vector, valid)
            has = present[:, s]
            pairs = LOSSES[config.loss](cosines, index, asked, has, config.temperature)
            counted = (asked & has[:, None]).astype(jnp.float32)
            losses.append(jnp.sum(pairs * counted) / jnp.maximum(jnp.sum(counted), 1.0))
            spreads.append(variance(vector, has))
        return jnp.stack(losses), jnp.stack(spreads)
