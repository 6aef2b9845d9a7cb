"""Greedy decoding: one `while_loop` with key-value caches, which stops when every row is done.

Shapes: P products, Q questions per product, N beams, L answer tokens, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from moemoe_jax.models.fusion import Fused
from moemoe_jax.models.moemoe import MoEMoE
from moemoe_jax.models.seq2seq import Seq2Seq
from moemoe_jax.nn.highest import highest

END = 1  # </s> in every T5 vocabulary
PAD = 0

Advance = Callable[..., tuple[jax.Array, tuple]]


def start_decoding(
    model: MoEMoE | Seq2Seq,
    fused: Fused,
    question: jax.Array | None,
    length: int,
    beams: int = 1,
) -> tuple[Advance, tuple]:
    """Prepares to decode `beams` answers a question, which share the projected sources.

    Args:
      model: the model.
      fused: from `model.fuse`.
      question: float [P, Q, D] mean question vectors, or None without a question encoder.
      length: L, the most tokens of an answer.
      beams: N answers a question, which read it as tokens of one answer do: what they read is
        there once for all of them.

    Returns:
      `advance(token, position, cache, alive, lineage)`, which takes int [P, Q, N] tokens, bool
      [P, Q, N], the answers that go on (the others take no expert slot), and the decoder's
      `lineage`, to the next token's scores, float32 [P, Q, N, V], and the cache; and the empty
      cache.
    """
    shape, memory, weights, memory_valid = model.read(fused)
    vectors = None if question is None else question.reshape(*shape, -1)
    first = None if model.start is None else model.start(question)[:, :, None]

    def advance(token, position, cache, alive, lineage=None):
        embedded = model.embed_answer(token)
        if first is not None:
            embedded = jnp.where(position == 0, embedded + first, embedded)
        hidden, cache = model.decoder.step(
            embedded.reshape(*shape, *embedded.shape[2:]),
            position,
            cache,
            memory,
            weights,
            memory_valid,
            question=vectors,
            valid=alive.reshape(*shape, beams),
            lineage=None if lineage is None else lineage.reshape(*shape, *lineage.shape[2:]),
        )
        logits = model.logits(hidden.reshape(*token.shape, -1))
        return logits.astype(jnp.float32), cache

    return advance, model.decoder.init_cache(*shape, length, beams)


def greedy(
    model: MoEMoE | Seq2Seq,
    fused: Fused,
    question: jax.Array | None,
    asked: jax.Array,
    length: int,
) -> tuple[jax.Array, jax.Array]:
    """Decodes each question's most probable next token until </s>.

    Args:
      model: the model.
      fused: from `model.fuse`.
      question: float [P, Q, D] mean question vectors, or None without a question encoder.
      asked: bool [P, Q]; a padding question is done before it starts.
      length: L, the most tokens of an answer, </s> included.

    Returns:
      ids, int32 [P, Q, L], </s> included and padding after it, and the log-probability of each of
      these tokens, float32 [P, Q, L], 0 at padding.
    """
    score_next, cache = start_decoding(model, fused, question, length)
    shape = asked.shape

    def unfinished(carry):
        position, _, done, *_ = carry
        return (position < length) & ~jnp.all(done)

    def advance(carry):
        position, token, done, cache, ids, scores = carry
        logits, cache = score_next(token[..., None], position, cache, ~done[..., None])
        logits = logits[:, :, 0]
        best, score = highest(logits)
        score -= jax.nn.logsumexp(logits, axis=-1)
        token = jnp.where(done, PAD, best)
        ids = jax.lax.dynamic_update_index_in_dim(ids, token, position, axis=2)
        scores = jax.lax.dynamic_update_index_in_dim(
            scores, jnp.where(done, 0.0, score), position, axis=2
        )
        return position + 1, token, done | (token == END), cache, ids, scores

    start = (
        jnp.zeros((), jnp.int32),
        jnp.full(shape, PAD, jnp.int32),
        ~asked,
        cache,
        jnp.full((*shape, length), PAD, jnp.int32),
        jnp.zeros((*shape, length), jnp.float32),
    )
    *_, ids, scores = jax.lax.while_loop(unfinished, advance, start)
    return ids, scores


def decoded(ids: jax.Array, asked: jax.Array) -> jax.Array:
    """Which of decoded ids [P, Q, L] a question led to, up to and with </s>: bool [P, Q, L].

    Of beams [P, Q, N, L], `asked` is [P, Q, 1]. That an id is not padding does not tell: a model
    may choose padding as any other token.
    """
    ends = ids == END
    earlier = jnp.cumsum(ends, axis=-1) - ends
    return (earlier == 0) & asked[..., None]
