"""Cross-entropy over the vocabulary that never holds all scores at once.

Scores of every token for every word are by far the largest arrays of a training step: 32 products,
6 questions and 16 tokens over 32,128 words are 400 MB, once for the loss and once for its gradient.
Here a few positions at a time are scored, and while their scores are there, the gradients by the
hidden states and by the vocabulary are taken as well: the backward pass only scales them.

Positions without weight (padding, slots without a question) come last, product by product, and
chunks that have nothing else are left out. Answers are short: of positions that are padded to the
longest of them, often more than half are such.

Shapes: P products, T positions of a product (questions times answer tokens), D width, V vocabulary,
C positions of a chunk.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax.custom_derivatives import CustomVJPPrimal
import jax.numpy as jnp

from moemoe_jax.nn.highest import highest
from moemoe_jax.nn.t5 import scores

CHUNK_SCORES = 2**19  # scores of a product held at a time: 2 MiB of float32


class _Positions(NamedTuple):
    """What a chunk is made of, each [P, C, ...]."""

    hidden: jax.Array
    targets: jax.Array
    weights: jax.Array


def vocabulary_loss(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    smoothing: float = 0.0,
    chunk_scores: int = CHUNK_SCORES,
) -> tuple[jax.Array, jax.Array]:
    """The weighted sum of the tokens' negative log-likelihoods, and which scores are highest.

    Args:
      hidden: float [P, T, D], and kernel, float [D, V]: their product is the scores.
      kernel: see `hidden`.
      targets: int [P, T].
      weights: float32 [P, T]; not differentiated.
      smoothing: share of the target's probability that is spread evenly over the vocabulary.
      chunk_scores: about how many scores of each product are held at a time, C V.

    Returns:
      float32 scalar, and the most probable words, int32 [P, T]: any, where the weight is 0.
    """
    chunk = max(1, chunk_scores // kernel.shape[1])
    return _loss(smoothing, chunk, hidden, kernel, targets, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(smoothing, chunk, hidden, kernel, targets, weights):
    total, best, _ = _by_chunks(smoothing, chunk, hidden, kernel, targets, weights, False, False)
    return total, best


def _forward(smoothing, chunk, *arguments: CustomVJPPrimal):
    values = [argument.value for argument in arguments]
    hidden, kernel = arguments[:2]
    total, best, gradients = _by_chunks(
        smoothing, chunk, *values, hidden.perturbed, kernel.perturbed
    )
    return (total, best), gradients


def _backward(smoothing, chunk, gradients, cotangents):
    del smoothing, chunk
    scale = cotangents[0]
    by_hidden, by_kernel = (None if g is None else (g * scale).astype(g.dtype) for g in gradients)
    return by_hidden, by_kernel, None, None


_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _by_chunks(
    smoothing: float,
    chunk: int,
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    by_hidden: bool,
    by_kernel: bool,
) -> tuple[jax.Array, jax.Array, tuple[Any, Any]]:
    """Loss, best words and, where asked for, the gradients by `hidden` and `kernel` (or None)."""
    length = targets.shape[1]
    positions = _Positions(hidden, targets, weights)

    def add(total, part):
        loss, best, (at_hidden, at_kernel) = _one_chunk(
            smoothing, kernel, part, by_hidden=by_hidden, by_kernel=by_kernel
        )
        return jax.tree.map(jnp.add, total, (loss, at_kernel)), (best, at_hidden)

    def add_if_any(total, part):
        needed, part = part
        found = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(add, total, part)[1]
        )
        return jax.lax.cond(needed, add, lambda total, part: (total, found), total, part)

    nothing = jnp.zeros(kernel.shape, jnp.float32) if by_kernel else None
    zero = jnp.zeros((), jnp.float32), nothing
    if chunk >= length:
        (loss, at_kernel), (best, at_hidden) = add(zero, positions)
    else:
        # Cut along the positions, as the products may lie on different devices.
        order = jnp.argsort(weights == 0, axis=1, stable=True)
        parts = jax.tree.map(lambda x: _cut(_take(x, order), chunk), positions)
        needed = jnp.any(parts.weights != 0, axis=(1, 2))
        (loss, at_kernel), found = jax.lax.scan(add_if_any, zero, (needed, parts))
        back = jnp.argsort(order, axis=1)
        best, at_hidden = jax.tree.map(lambda x: _take(_join(x, length), back), found)
    if by_kernel:
        at_kernel = at_kernel.astype(kernel.dtype)
    return loss, best, (at_hidden, at_kernel)


def _one_chunk(
    smoothing: float, kernel: jax.Array, part: _Positions, *, by_hidden: bool, by_kernel: bool
) -> tuple[jax.Array, jax.Array, tuple[Any, Any]]:
    logits = scores(part.hidden, kernel)
    log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    words = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    is_target = words == part.targets[..., None]
    # -Σ_v q_v log p_v, with q the smoothed target; comparing with every word in place of picking
    # one leaves a vocabulary that is split over devices where it is.
    wanted = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
    even = jnp.mean(logits, axis=-1) if smoothing else 0.0
    nll = log_z[..., 0] - (1.0 - smoothing) * wanted - smoothing * even
    loss = jnp.sum(nll * part.weights)
    best, _ = highest(logits)

    # d nll / d logits = softmax(logits) - q.
    target = is_target * (1.0 - smoothing) + smoothing / logits.shape[-1]
    gradient = (jnp.exp(logits - log_z) - target) * part.weights[..., None]
    gradient = gradient.astype(kernel.dtype)
    at_hidden = at_kernel = None
    if by_hidden:
        at_hidden = jnp.einsum("ptv,dv->ptd", gradient, kernel).astype(part.hidden.dtype)
    if by_kernel:
        at_kernel = jnp.einsum(
            "ptd,ptv->dv", part.hidden, gradient, preferred_element_type=jnp.float32
        )
    return loss, best, (at_hidden, at_kernel)


def _take(x: jax.Array, order: jax.Array) -> jax.Array:
    """[P, T, ...] with each product's positions in an order, int [P, T]."""
    return jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)


def _cut(x: jax.Array, chunk: int) -> jax.Array:
    """[P, T, ...] to [⌈T/C⌉, P, C, ...]; zeros, of weight zero, fill the last."""
    short = -x.shape[1] % chunk
    x = jnp.pad(x, ((0, 0), (0, short), *[(0, 0)] * (x.ndim - 2)))
    x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1)


def _join(x: jax.Array, length: int) -> jax.Array:
    """What `_cut` cut, together again: [⌈T/C⌉, P, C, ...] to [P, T, ...]."""
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
