"""Routing: which experts each token goes to, with what weight, and what the router is charged.

Pure functions on arrays, in float32 whatever the input's dtype. A new gate, noise or level is one
function and one line in the registry below it.

Shapes: T tokens, D width, E experts, k experts per token, R rows of L tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moemoe_jax.nn.highest import highest

JITTER = 1e-2


class Routing(NamedTuple):
    """What a router decided.

    Attributes:
      experts: int32 [T, k], the chosen experts of each token, first choice first.
      weights: float32 [T, k], what each chosen expert's output is multiplied by.
      probs: float32 [T, E], the softmax over all experts.
      logits: float32 [T, E], with the noise the choice was made under.
    """

    experts: jax.Array
    weights: jax.Array
    probs: jax.Array
    logits: jax.Array


def pick(registry: Mapping[str, Any], name: str, what: str) -> Any:
    """Looks `name` up.

    Raises:
      ValueError: naming the valid names, when `name` is not one of them.
    """
    if name not in registry:
        raise ValueError(f"unknown {what} {name!r}: use one of {', '.join(registry)}")
    return registry[name]


# Noise: router input -> logits, in training only.


class Noise(NamedTuple):
    """A way to perturb a router.

    Attributes:
      logits: (x [T, D], kernel [D, E], noise kernel [D, E] or None, key) -> float32 [T, E].
      has_kernel: whether it needs the noise kernel.
    """

    logits: Callable[[jax.Array, jax.Array, jax.Array | None, jax.Array], jax.Array]
    has_kernel: bool = False


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Float32 x W: near-ties between experts would flip in less, so also on TPU."""
    return jnp.matmul(x.astype(jnp.float32), kernel.astype(jnp.float32), precision="highest")


def _no_noise(x, kernel, noise_kernel, key):
    del noise_kernel, key
    return project(x, kernel)


def _gaussian(x, kernel, noise_kernel, key):
    """Adds noise of standard deviation 1 / E, as V-MoE does."""
    del noise_kernel
    logits = project(x, kernel)
    return logits + jax.random.normal(key, logits.shape) / logits.shape[-1]


def _learned(x, kernel, noise_kernel, key):
    """Adds noise whose scale is learned: softplus(x W_noise), as in noisy top-k gating."""
    logits = project(x, kernel)
    scale = jax.nn.softplus(project(x, noise_kernel))
    return logits + scale * jax.random.normal(key, logits.shape)


def _jitter(x, kernel, noise_kernel, key):
    """Multiplies the router's input by uniform noise in 1 +- 1e-2, as Switch does."""
    del noise_kernel
    factor = jax.random.uniform(key, x.shape, minval=1.0 - JITTER, maxval=1.0 + JITTER)
    return project(x.astype(jnp.float32) * factor, kernel)


NOISES: dict[str, Noise] = {
    "none": Noise(_no_noise),
    "gaussian": Noise(_gaussian),
    "learned": Noise(_learned, has_kernel=True),
    "jitter": Noise(_jitter),
}


# Gates: logits [T, E] -> weights [T, k], experts [T, k].


def top_k(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row and where they are, largest first and, among equals, the first.

    As `jax.lax.top_k`, which however fetches the rows of all devices to each.

    Args:
      scores: float [T, E].
      k: at most E.

    Returns:
      [T, k] of the dtype of `scores`, and int32 [T, k].
    """
    values, places, rest = [], [], scores
    for _ in range(k):
        places.append(highest(rest)[0])
        here = jnp.arange(scores.shape[-1]) == places[-1][:, None]
        values.append(jnp.sum(jnp.where(here, scores, 0), axis=-1))
        rest = jnp.where(here, -jnp.inf, rest)
    return jnp.stack(values, axis=-1), jnp.stack(places, axis=-1)


def _topk_softmax(logits, k):
    """softmax(top_k(logits)): the weights of the chosen experts sum to one (MoEMoE)."""
    values, experts = top_k(logits, k)
    return jax.nn.softmax(values, axis=-1), experts


def _softmax_topk(logits, k):
    """top_k(softmax(logits)), not renormalised, so that k = 1 still trains the router (Switch)."""
    return top_k(jax.nn.softmax(logits, axis=-1), k)


GATES: dict[str, Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]] = {
    "topk_softmax": _topk_softmax,
    "softmax_topk": _softmax_topk,
}


def route(
    x: jax.Array,
    kernel: jax.Array,
    top_k: int,
    *,
    gate: str = "topk_softmax",
    noise: str = "none",
    noise_kernel: jax.Array | None = None,
    key: jax.Array | None = None,
) -> Routing:
    """Chooses experts: w(x) = gate(x W + noise).

    Args:
      x: float [T, D].
      kernel: float [D, E].
      top_k: k, experts per token.
      gate: a name in `GATES`.
      noise: a name in `NOISES`.
      noise_kernel: float [D, E], for the noises that learn their scale.
      key: of the noise; without one there is none, and routing is deterministic.

    Raises:
      ValueError: an unknown gate or noise.
    """
    chosen_noise = NOISES["none"] if key is None else pick(NOISES, noise, "router noise")
    logits = chosen_noise.logits(x, kernel, noise_kernel, key)
    weights, experts = pick(GATES, gate, "gate")(logits, top_k)
    return Routing(experts, weights, jax.nn.softmax(logits, axis=-1), logits)


# Levels: what the router looks at. (x [R, L, D], valid [R, L], question [R, D] or None) -> the
# router's input: float [R, L, D], or [R, 1, D] where a row's tokens share their experts. A decoder
# that answers has but one token at a time: for it, a token's input may follow from that token and
# the question alone.


def _token(x, valid, question):
    del valid, question
    return x


def _sequence(x, valid, question):
    """The mean of the row's real tokens: looks ahead, hence not for a decoder."""
    del question
    total = jnp.sum(jnp.where(valid[..., None], x, 0).astype(jnp.float32), axis=1, keepdims=True)
    return total / jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None, None]


def _question(x, valid, question):
    del valid
    if question is None:
        raise ValueError("routing level 'question' needs the pooled question vector: pass question")
    return question.reshape(x.shape[0], 1, x.shape[-1])


LEVELS: dict[str, Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]] = {
    "token": _token,
    "sequence": _sequence,
    "question": _question,
}


# Statistics: over the valid tokens only. Without a single one, all are zero.


def valid_mean(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Averages float [T, ...] over the tokens where bool [T] `valid`: float32 [...]."""
    mask = valid.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.sum(jnp.where(mask, values, 0.0), axis=0) / jnp.maximum(jnp.sum(valid), 1)


def _gate_prob(routing):
    picked = jax.nn.one_hot(routing.experts, routing.probs.shape[-1])
    return jnp.sum(picked * routing.weights[..., None], axis=1)


AUX_PROBS: dict[str, Callable[[Routing], jax.Array]] = {
    "full_softmax": lambda routing: routing.probs,
    "gate": _gate_prob,
}


def load_balancing_loss(
    routing: Routing, valid: jax.Array, aux_prob: str = "full_softmax"
) -> jax.Array:
    """L_aux = E sum_i f_i P_i, float32 []: 1 for uniform routing, E when all goes to one expert.

    f_i is the fraction of tokens whose first choice is expert i, P_i the mean probability of i.
    1 is not a lower bound: f and P may disagree.

    Args:
      routing: of T tokens.
      valid: bool [T].
      aux_prob: a name in `AUX_PROBS`: "full_softmax" (Switch), or "gate", the sparse weights.

    Raises:
      ValueError: an unknown `aux_prob`.
    """
    count = routing.probs.shape[-1]
    first = valid_mean(jax.nn.one_hot(routing.experts[:, 0], count), valid)
    mean = valid_mean(pick(AUX_PROBS, aux_prob, "aux_prob")(routing), valid)
    return count * jnp.sum(first * mean)


def z_loss(routing: Routing, valid: jax.Array) -> jax.Array:
    """Mean squared logsumexp of the logits, float32 []: keeps them small."""
    return valid_mean(jax.nn.logsumexp(routing.logits, axis=-1) ** 2, valid)


def entropy(routing: Routing, valid: jax.Array) -> jax.Array:
    """Mean entropy of the full softmax in nats, float32 []."""
    log_probs = jax.nn.log_softmax(routing.logits, axis=-1)
    return valid_mean(-jnp.sum(routing.probs * log_probs, axis=-1), valid)


def expert_load(routing: Routing, valid: jax.Array) -> jax.Array:
    """Fraction of all choices that fall on each expert, before any drop: float32 [E]."""
    picked = jax.nn.one_hot(routing.experts, routing.probs.shape[-1])
    return valid_mean(jnp.mean(picked, axis=1), valid)
