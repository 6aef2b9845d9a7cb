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

from moemoe_jax.models.encoded import Encoded, extend_text, mean_pool
from moemoe_jax.nn.linear import Linear
from moemoe_jax.nn.params import normal
from moemoe_jax.nn.rows import repeat_of


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


Vectors = tuple[jax.Array, jax.Array]
"""float [B, N], one vector a row, and which of their entries count, bool [B, N]."""


def pair_cosines(question: Vectors, source: Vectors, pairs: str = "un,pn->pu") -> jax.Array:
    """The cosines of questions with products' sources, over the tokens real in both.

    Args:
      question: of U questions.
      source: of P products.
      pairs: who meets whom, as `einsum` has it; by default every question every product. With
        "pqn,pn->pq", `question` has the Q questions of each product, [P, Q, N].

    Returns:
      float32 [P, U], or as `pairs` says. A pair without a common token has cosine 0.
    """

    def meet(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(pairs, left.astype(jnp.float32), right.astype(jnp.float32))

    q, p = (jnp.where(valid, vectors, 0.0) for vectors, valid in (question, source))
    # Each norm runs over the tokens that the partner has as well.
    squared = meet(q**2, source[1]) * meet(question[1], p**2)
    empty = squared <= 1e-24
    return jnp.where(empty, 0.0, meet(q, p) * jax.lax.rsqrt(jnp.where(empty, 1.0, squared)))


def cosine_loss(
    question: Vectors,
    source: Vectors,
    index: jax.Array,
    asked: jax.Array,
    present: jax.Array,
    temperature: float,
) -> jax.Array:
    """|1 − cos| of each pair (eqs 6-7): float32 [P, Q]; for the arguments, see `infonce_loss`."""
    del asked, present, temperature
    # Of the asked pairs alone: all that there could be are as many as the batch's size squared.
    mine = tuple(x[index] for x in question)
    return jnp.abs(1.0 - pair_cosines(mine, source, "pqn,pn->pq"))


def infonce_loss(
    question: Vectors,
    source: Vectors,
    index: jax.Array,
    asked: jax.Array,
    present: jax.Array,
    temperature: float,
) -> jax.Array:
    """Cross-entropy of a pair against the products that are not asked its question.

    Products that are asked the same question share its vector, so they are no negatives; a question
    that every product of the batch is asked has loss 0. Nor is a product without the source.

    Args:
      question: of the U distinct questions.
      source: of the P products.
      index: int [P, Q], which question each product is asked.
      asked: bool [P, Q].
      present: bool [P], the products that have the source.
      temperature: what cosines are divided by.

    Returns:
      float32 [P, Q].
    """
    logits = pair_cosines(question, source) / temperature
    products, distinct = logits.shape
    excluded = jnp.broadcast_to(~present[:, None], (products, distinct))
    excluded = excluded.at[jnp.arange(products)[:, None], index].max(asked)
    negatives = jax.nn.logsumexp(jnp.where(excluded, -1e9, logits), axis=0)  # [U]
    positive = jnp.take_along_axis(logits, index, axis=1)
    return jnp.logaddexp(positive, negatives[index]) - positive


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cosine": cosine_loss,
    "infonce": infonce_loss,
}


def variance(vectors: Vectors, rows: jax.Array) -> jax.Array:
    """The variance of each entry over the rows bool [B] that have it, a mean over all that count.

    For the log alone: it has no gradient. Zero where nothing counts.
    """
    values, valid = vectors
    values = jax.lax.stop_gradient(values).astype(jnp.float32)
    counted = valid & rows[:, None]
    mean = jnp.sum(values, axis=0, where=counted) / jnp.maximum(jnp.sum(counted, axis=0), 1)
    squares = jnp.sum((values - mean) ** 2, where=counted)
    return squares / jnp.maximum(jnp.sum(counted), 1)


class TokenProjection(nnx.Module):
    """Dense(D → 1) per token, without a bias: K tokens become a vector of K."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = normal(width**-0.5)
        # Not split: for its gradient, all of the batch would be.
        self.score = Linear(width, 1, rngs=rngs, init=init, dtype="float32")

    def __call__(self, encoded: Encoded, mask_padding: bool) -> Vectors:
        """Returns vectors of N = K."""
        valid = encoded.valid if mask_padding else jnp.ones_like(encoded.valid)
        scores = self.score(encoded.rows)[..., 0]
        return repeat_of(encoded.repeat).spread(scores, valid.shape[1]), valid


class MeanPool(nnx.Module):
    """The mean over the real tokens: K tokens become a vector of D. No parameters."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        pass

    def __call__(self, encoded: Encoded, mask_padding: bool) -> Vectors:
        """Returns vectors of N = D; all of their entries count."""
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
          float32 [S] losses (eqs 6-7), and float32 [1 + S] variances of the vectors: of the
          questions that are no padding, and of each source over the products that have it. One
          that tends to zero is a collapse.
        """
        config = self.config
        last = len(self.reduce) - 1
        questions = self.reduce[0](
            extend_text(question, sources[0].valid.shape[1]), config.mask_padding
        )
        losses, spreads = [], [variance(questions, jnp.any(question.valid, axis=1))]
        for s, source in enumerate(sources):
            products = self.reduce[min(s + 1, last)](source, config.mask_padding)
            has = present[:, s]
            pairs = LOSSES[config.loss](questions, products, index, asked, has, config.temperature)
            counted = (asked & has[:, None]).astype(jnp.float32)
            losses.append(jnp.sum(pairs * counted) / jnp.maximum(jnp.sum(counted), 1.0))
            spreads.append(variance(products, has))
        return jnp.stack(losses), jnp.stack(spreads)
