"""Beam search: one `while_loop`, which stops when no row can be improved.

The rules are those of transformers' `generate`, so that scores and beams agree with it: of the 2N
best continuations of N beams, those among the first N that end here are finished answers, whose
score is Σ log p / tokens^length_penalty; the best N that do not end go on. A row keeps its N best
finished answers, and is done as `EARLY_STOPPINGS` says.

A beam that continues another reads its keys and values where that one wrote them: what is carried
from beam to beam is a number for each token, its slot in the decoder's cache.

Shapes: P products, Q questions per product, N beams, L answer tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moemoe_jax.inference.decoding import END, PAD, decoded, greedy, start_decoding
from moemoe_jax.models.fusion import Fused
from moemoe_jax.models.moemoe import MoEMoE
from moemoe_jax.models.seq2seq import Seq2Seq

_NEVER = -1e9  # a score below all others, and finite: no infinity minus infinity

# What may still be reached by the best beam that goes on, as the length by which its Σ log p is
# divided; None: a row with N finished answers is done, whatever they are.
EARLY_STOPPINGS: dict[str, Callable[[jax.Array, int, float], jax.Array | int] | None] = {
    "true": None,
    "false": lambda length, limit, penalty: length,
    # The most that there can be: with a positive penalty a longer answer has the higher score.
    "never": lambda length, limit, penalty: limit if penalty > 0 else length,
}


class Beams(NamedTuple):
    """N answers a question, the best first.

    Attributes:
      ids: int32 [P, Q, N, L], </s> included and padding after it.
      log_probs: float32 [P, Q, N, L], of each of these tokens; 0 at padding.
      scores: float32 [P, Q, N], what they are ranked by.
    """

    ids: jax.Array
    log_probs: jax.Array
    scores: jax.Array

    def pick(self, index: jax.Array) -> "Beams":
        """The beams at int [P, Q, M] of each question."""
        return jax.tree.map(lambda a: _pick(a, index), self)

    def join(self, other: "Beams") -> "Beams":
        """The beams of both, this one's first."""
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), self, other)


def beam_search(
    model: MoEMoE | Seq2Seq,
    fused: Fused,
    question: jax.Array | None,
    asked: jax.Array,
    length: int,
    *,
    beams: int,
    length_penalty: float = 1.0,
    early_stopping: str = "false",
) -> Beams:
    """Decodes each question's best answers; `greedy` has the other arguments.

    Args:
      model: the model.
      fused: from `model.fuse`.
      question: float [P, Q, D] or None.
      asked: bool [P, Q].
      length: L, the most tokens of an answer, </s> included.
      beams: N.
      length_penalty: the power of an answer's length by which its Σ log p is divided.
      early_stopping: a name in `EARLY_STOPPINGS`.

    Returns:
      The best N; a padding question has padding, with a score of zero.
    """
    score_next, cache = start_decoding(model, fused, question, length, beams)
    shape = (*asked.shape, beams)
    write = jax.lax.dynamic_update_index_in_dim

    def unfinished(carry):
        position, _, done, *_ = carry
        return (position < length) & ~jnp.all(done)

    def advance(carry):
        position, token, done, cache, lineage, running, finished = carry
        alive = jnp.broadcast_to(~done[..., None], shape)
        slots = jnp.broadcast_to(jnp.arange(beams), shape)
        lineage = write(lineage, slots, position, axis=3)
        logits, cache = score_next(token, position, cache, alive, lineage)
        parent, chosen, found = _best_continuations(logits, running, position)
        ends = (chosen == END) | (position + 1 == length)

        # The N best that go on.
        going = jnp.where(ends, _NEVER, found.scores)
        running_scores, index = jax.lax.top_k(going, beams)
        running = found.pick(index)._replace(scores=running_scores)
        lineage = _pick(lineage, _pick(parent, index))

        # The N best that have ended, now or before; those that end now must be among the first N.
        first = jnp.arange(2 * beams) < beams
        penalty = (position + 1).astype(jnp.float32) ** length_penalty
        ended = jnp.where(ends & first & ~done[..., None], found.scores / penalty, _NEVER)
        scores, best = jax.lax.top_k(jnp.concatenate([finished.scores, ended], axis=-1), beams)
        finished = finished.join(found).pick(best)._replace(scores=scores)

        stops = scores[..., -1] > _NEVER / 2
        if (reach := EARLY_STOPPINGS[early_stopping]) is not None:
            limit = jnp.asarray(reach(position + 1, length, length_penalty), jnp.float32)
            stops &= running_scores[..., 0] / limit**length_penalty <= scores[..., -1]
        token = _pick(chosen, index)
        return position + 1, token, done | stops, cache, lineage, running, finished

    nothing = Beams(
        ids=jnp.full((*shape, length), PAD, jnp.int32),
        log_probs=jnp.zeros((*shape, length), jnp.float32),
        scores=jnp.full(shape, _NEVER, jnp.float32),
    )
    start = (
        jnp.zeros((), jnp.int32),
        jnp.full(shape, PAD, jnp.int32),
        ~asked,
        cache,
        jnp.zeros((*shape, length), jnp.int32),
        # All beams are equal at first: only one may continue.
        nothing._replace(scores=jnp.where(jnp.arange(beams) == 0, 0.0, nothing.scores)),
        nothing,
    )
    *_, finished = jax.lax.while_loop(unfinished, advance, start)
    return finished._replace(scores=jnp.where(asked[..., None], finished.scores, 0.0))


def _best_continuations(
    logits: jax.Array, running: Beams, position: jax.Array
) -> tuple[jax.Array, jax.Array, Beams]:
    """The 2N best continuations of N beams by one token.

    Args:
      logits: float32 [P, Q, N, V] of that token.
      running: the beams.
      position: int scalar, where the token stands.

    Returns:
      which beam each continues and with which token, int32 [P, Q, 2N], and all of it.
    """
    *shape, beams, vocabulary = logits.shape
    each = min(2 * beams, vocabulary)
    # Each beam's best first: the vocabulary is read once, and nothing as large is written. In two
    # dimensions, as XLA has a fast way for those on a CPU.
    values, tokens = jax.lax.top_k(logits.reshape(-1, vocabulary), each)
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    log_probs = values.reshape(*shape, beams, each) - total
    flat = (*shape, beams * each)
    scores, index = jax.lax.top_k((running.scores[..., None] + log_probs).reshape(flat), 2 * beams)
    parent = index // each
    chosen = _pick(tokens.reshape(flat), index)
    found = running.pick(parent)
    write = jax.lax.dynamic_update_index_in_dim
    found = Beams(
        ids=write(found.ids, chosen, position, axis=3),
        log_probs=write(found.log_probs, _pick(log_probs.reshape(flat), index), position, axis=3),
        scores=scores,
    )
    return parent, chosen, found


def _pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """Picks along dimension 2 of [P, Q, N, ...] by int [P, Q, M]."""
    return jax.vmap(jax.vmap(lambda rows, chosen: rows[chosen]))(values, index)


def best_answers(
    model: MoEMoE | Seq2Seq,
    fused: Fused,
    question: jax.Array | None,
    asked: jax.Array,
    length: int,
    *,
    beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: str = "false",
) -> Beams:
    """`beam_search`, or with one beam `greedy`, which is the same and has nothing to reorder."""
    if beams > 1:
        return beam_search(
            model,
            fused,
            question,
            asked,
            length,
            beams=beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
    ids, log_probs = greedy(model, fused, question, asked, length)
    tokens = jnp.maximum(jnp.sum(decoded(ids, asked), axis=-1), 1)
    scores = jnp.sum(log_probs, axis=-1) / tokens**length_penalty
    return Beams(ids[:, :, None], log_probs[:, :, None], scores[:, :, None])
