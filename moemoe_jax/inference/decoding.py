"""Greedy decoding: one `while_loop` with key-value caches, which stops when every row is done.

Shapes: P products, Q questions per product, L answer tokens, V vocabulary.
"""

import jax
import jax.numpy as jnp

from moemoe_jax.models.fusion import Fused
from moemoe_jax.models.moemoe import MoEMoE

END = 1  # </s> in every T5 vocabulary
PAD = 0


def greedy(
    model: MoEMoE,
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
    rows, memory, weights, memory_valid = model.read(fused)
    shape = asked.shape
    vectors = None if question is None else question.reshape(*rows, -1)

    def unfinished(carry):
        position, _, done, *_ = carry
        return (position < length) & ~jnp.all(done)

    def advance(carry):
        position, token, done, cache, ids, scores = carry
        embedded = model.embed_answer(token[..., None], None, first=False)
        if model.start is not None:
            started = model.embed_answer(token[..., None], question, first=True)
            embedded = jnp.where(position == 0, started, embedded)
        hidden, cache = model.decoder.step(
            embedded.reshape(*rows, 1, -1),
            position,
            cache,
            memory,
            weights,
            memory_valid,
            question=vectors,
            valid=~done.reshape(*rows, 1),
        )
        logits = model.logits(hidden.reshape(*shape, -1)).astype(jnp.float32)
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        score = jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
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
        model.decoder.init_cache(*rows, length),
        jnp.full((*shape, length), PAD, jnp.int32),
        jnp.zeros((*shape, length), jnp.float32),
    )
    *_, ids, scores = jax.lax.while_loop(unfinished, advance, start)
    return ids, scores


def decoded(ids: jax.Array, asked: jax.Array) -> jax.Array:
    """Which of `greedy`'s ids [P, Q, L] a question led to, up to and with </s>: bool [P, Q, L].

    That an id is not padding does not tell: a model may choose padding as any other token.
    """
    ends = ids == END
    earlier = jnp.cumsum(ends, axis=-1) - ends
    return (earlier == 0) & asked[..., None]
