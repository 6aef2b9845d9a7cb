"""The gate of question-guided attention: the weight of each source, read from the question (eq 4).

Shapes: P products, Q questions per product, U distinct questions, S sources, K tokens, D width,
J question tokens, N rows of all sources, of which some stand for several tokens: see `nn.rows`.
"""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp

from moemoe_jax.models.encoded import Encoded, mean_pool, real_tokens
from moemoe_jax.nn.linear import Linear
from moemoe_jax.nn.params import constant, normal, param
from moemoe_jax.nn.rows import Rows, parts, repeat_of

# --- logits --------------------------------------------------------------------------------------


# Each says whether it reads the question at each of the K positions, for which its padding is
# encoded up to there, and whether it looks at the sources' rows: then cutting a text's padding off
# may change an answer (`inference.buckets`).


class TokenGate(nnx.Module):
    """The paper's gate: FC(Q), read at every one of the K positions, padding included.

    A question is short and a context long, so most positions of Q are padding; T5 gives finite,
    question-dependent values there, which is why they are read and not zeroed.
    """

    reads_positions, reads_sources = True, False

    def __init__(self, sources: int, width: int, *, rngs: nnx.Rngs):
        self.score = _score_layer(sources, width, rngs)

    def __call__(
        self, question: Encoded, index: jax.Array, sources: Rows, length: int
    ) -> jax.Array:
        """Returns logits [P, Q, S, K] from K tokens of U questions and `index` int [P, Q]."""
        scores = jnp.swapaxes(self.score(question.rows), 1, 2)
        return repeat_of(question.repeat).spread(scores, length)[index]


class PooledGate(TokenGate):
    """The same weights at every token, from the mean of the question's real tokens."""

    reads_positions = False

    def __call__(
        self, question: Encoded, index: jax.Array, sources: Rows, length: int
    ) -> jax.Array:
        """Returns logits [P, Q, S, K], equal along K."""
        logits = self.score(mean_pool(question))[index]
        return jnp.broadcast_to(logits[..., None], (*logits.shape, length))


class CrossGate(TokenGate):
    """Each source token attends to the question; its weight is read from what it finds there."""

    reads_positions, reads_sources = False, True

    def __call__(
        self, question: Encoded, index: jax.Array, sources: Rows, length: int
    ) -> jax.Array:
        """Returns logits [P, Q, S, K]."""
        tokens, valid = question.rows[index], (real_tokens(question) > 0)[index][:, :, None]
        attention = jnp.einsum("pnd,pqjd->pqnj", sources.values, tokens).astype(jnp.float32)
        attention = jnp.where(valid, attention * tokens.shape[-1] ** -0.5, -1e9)
        probs = jnp.swapaxes(jax.nn.softmax(attention, axis=-1), 2, 3)  # [P, Q, J, N]
        # A token that no row stands for is a vector of zeros: it attends to all alike.
        evenly = jax.nn.softmax(jnp.where(valid, 0.0, -1e9), axis=-1)  # [P, Q, 1, J]
        # Scoring before averaging: FC is linear, so the S scores of each question token suffice.
        scores = jnp.swapaxes(self.score(tokens), 2, 3)  # [P, Q, S, J]
        default = jnp.sum(scores * evenly, axis=-1, keepdims=True)
        found = [
            repeat_of(repeat).spread(
                jnp.einsum("pqjn,pqj->pqn", part, scores[:, :, s]) - default[:, :, s], length
            )
            for s, (part, (_, repeat)) in enumerate(
                zip(parts(probs, sources.spans), sources.spans, strict=True)
            )
        ]
        return default + jnp.stack(found, axis=2)


class LearnedGate(nnx.Module):
    """One learned scalar per source, whatever the question: question guidance removed (WoQG)."""

    reads_positions = reads_sources = False

    def __init__(self, sources: int, width: int, *, rngs: nnx.Rngs):
        self.logits = param(rngs, (sources,), constant(1 / sources), (None,))

    def __call__(
        self, question: Encoded, index: jax.Array, sources: Rows, length: int
    ) -> jax.Array:
        """Returns logits [P, Q, S, K], equal for all questions and tokens."""
        shape = (*index.shape, len(sources.spans), length)
        return jnp.broadcast_to(self.logits[...][:, None], shape)


class UnitGate(nnx.Module):
    """e = Σ_s S_s: every weight is one. No parameters."""

    reads_positions = reads_sources = False

    def __init__(self, sources: int, width: int, *, rngs: nnx.Rngs):
        pass

    def __call__(
        self, question: Encoded, index: jax.Array, sources: Rows, length: int
    ) -> jax.Array:
        """Returns ones [P, Q, S, K]."""
        return jnp.ones((*index.shape, len(sources.spans), length), jnp.float32)


GATES: dict[str, type[nnx.Module]] = {
    "token": TokenGate,
    "pooled": PooledGate,
    "cross": CrossGate,
    "learned": LearnedGate,
    "unit": UnitGate,
}


def _score_layer(sources: int, width: int, rngs: nnx.Rngs) -> Linear:
    # The weights are not normalised in the paper. A bias of 1/S makes e start as the mean of the
    # sources; with zero, the decoder would see near-zero keys and values at the first step.
    layer = Linear(
        width,
        sources,
        rngs=rngs,
        init=normal(0.02 * width**-0.5),
        axes=("embed", None),
        use_bias=True,
        dtype="float32",
    )
    layer.bias[...] = jnp.full((sources,), 1 / sources)
    return layer


# --- normalisation over the sources, where they count ---------------------------------------------

# Whether a source's weight holds at its own padding. A text's encoding there is finite and says
# something of the text, and with "read" (to the letter) it is mixed into e like any other; with
# "zero" those tokens of e are the other sources' alone, which makes an image far easier to read.
PADDINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "read": jnp.ones_like,
    "zero": lambda valid: valid,
}


def counting_tokens(source_valid: jax.Array, present: jax.Array, padding: str) -> jax.Array:
    """Returns bool [P, S, K], where each source counts.

    Args:
      source_valid: bool [P, S, K], the real tokens.
      present: bool [P, S]; a source that a product lacks counts nowhere.
      padding: a name of `PADDINGS`.
    """
    return PADDINGS[padding](source_valid) & present[:, :, None]


def _softmax(logits: jax.Array, counts: jax.Array) -> jax.Array:
    weights = jax.nn.softmax(jnp.where(counts, logits, -1e9), axis=2)
    return jnp.where(counts, weights, 0.0)


GATE_NORMS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "none": lambda logits, counts: jnp.where(counts, logits, 0.0),  # the paper's eqs 4-5
    "softmax": _softmax,
    "sigmoid": lambda logits, counts: jnp.where(counts, jax.nn.sigmoid(logits), 0.0),
}


def gate_weights(logits: jax.Array, counts: jax.Array, norm: str) -> jax.Array:
    """Turns gate logits into source weights.

    Args:
      logits: float [P, Q, S, K].
      counts: bool [P, S, K], from `counting_tokens`; elsewhere a source gets weight zero.
      norm: a name of `GATE_NORMS`.

    Returns:
      float32 [P, Q, S, K].
    """
    return GATE_NORMS[norm](logits.astype(jnp.float32), counts[:, None])


def source_shares(weights: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns the mean of weights [P, Q, S, K] over the tokens that count, float32 [P, Q, S].

    The zeros elsewhere do not enter it: how much a question makes of a text does not depend on
    how long that is. A source that a product lacks has zero.
    """
    return jnp.sum(weights, axis=-1) / jnp.maximum(jnp.sum(counts, axis=-1), 1)[:, None]
