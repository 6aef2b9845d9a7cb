"""T5 attention: no 1/sqrt(d), a learned bias by distance, and cross-attention over shared sources.

The memory of a decoder here is a question-guided sum of sources, e_k = sum_s w_sk S_sk (eq 5), with
one scalar w per question, source and token. Cross-attention projects e with neither norm nor
bias in front, so its keys are sum_s w_sk (S_sk W_k), its values likewise: the products S W_k and
S W_v are computed once per product and shared by all of its questions, and only the weights,
one number a token, differ between questions. Nor does a row that stands for several tokens
differ between those (see `rows`): it is projected, and multiplied with a query, once.

Shapes: P products, Q questions, S sources, N rows of all sources, K memory tokens, L queries, H
heads, C channels of a head, D width, M cached positions. A leading "..." is any batch.
"""

import math

from flax import nnx, struct
import jax
import jax.numpy as jnp
import numpy as np

from moemoe_jax.nn.linear import Linear
from moemoe_jax.nn.params import normal, param
from moemoe_jax.nn.rng import dropout
from moemoe_jax.nn.rows import Rows, Spans, fold, spread


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax over the last dimension among the entries whose mask is True.

    Args:
      scores: float [..., K].
      mask: bool, broadcastable to `scores`.

    Returns:
      float32 [..., K]; zeros outside the mask, so a row without a valid entry is all zeros, and
      so is its gradient.
    """
    scores = jnp.where(mask, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    scale = jnp.where(mask, jnp.exp(scores - peak), 0.0)
    total = jnp.sum(scale, axis=-1, keepdims=True)
    return scale / jnp.where(total > 0, total, 1.0)


def distance_buckets(buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each distance 0..max_distance: half are exact, the others grow logarithmically.

    Returns:
      int32 [max_distance + 1]; every larger distance shares the last entry.
    """
    exact = buckets // 2
    distance = np.arange(max_distance + 1, dtype=np.float32)
    ratio = np.log(np.maximum(distance, 1) / exact) / np.float32(math.log(max_distance / exact))
    far = exact + (ratio * (buckets - exact)).astype(np.int32)
    near = distance.astype(np.int32)
    return np.where(near < exact, near, np.minimum(far, buckets - 1)).astype(np.int32)


@jax.custom_vjp
def add_shared(scores: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias [H, L, K] to the scores [..., H, L, K] of every row.

    The bias's gradient is a sum over the rows. It is taken as a product with a row of ones: as a
    sum over leading dimensions, it is thirty times slower on a CPU and as costly as the attention.
    """
    return scores + bias


def _add_shared_forward(scores, bias):
    return scores + bias, None


def _add_shared_backward(_, gradient):
    rows = gradient.reshape(-1, math.prod(gradient.shape[-3:]))
    ones = jnp.ones((1, rows.shape[0]), rows.dtype)
    total = jnp.matmul(ones, rows, precision=jax.lax.Precision.HIGHEST)
    return gradient, total.reshape(gradient.shape[-3:])


add_shared.defvjp(_add_shared_forward, _add_shared_backward)


class RelativeBias(nnx.Module):
    """A learned bias [H, L, K] by the distance from query to key, as T5 adds it to the scores.

    Both directions share the buckets in halves if `bidirectional`; otherwise keys that come
    after the query fall into bucket 0.
    """

    def __init__(
        self,
        buckets: int,
        max_distance: int,
        heads: int,
        *,
        bidirectional: bool,
        stddev: float,
        rngs: nnx.Rngs,
    ):
        self.buckets = buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        init = normal(stddev)
        self.table = param(rngs, (buckets, heads), init, (None, None))

    def __call__(self, query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
        """Returns the float32 bias [H, L, K] of int positions [L] and [K]."""
        relative = jnp.asarray(key_positions)[None, :] - jnp.asarray(query_positions)[:, None]
        half = self.buckets // 2 if self.bidirectional else self.buckets
        distance = jnp.abs(relative) if self.bidirectional else jnp.maximum(-relative, 0)
        table = jnp.asarray(distance_buckets(half, self.max_distance))
        bucket = table[jnp.minimum(distance, self.max_distance)]
        if self.bidirectional:
            bucket = bucket + half * (relative > 0)
        return jnp.transpose(self.table[...][bucket], (2, 0, 1))


@struct.dataclass
class KVCache:
    """Projected keys and values [..., H, M, C] of the positions decoded so far.

    This is how their products with a query want them: were the heads last but one, every step of
    decoding would turn the whole cache round.
    """

    keys: jax.Array
    values: jax.Array


@struct.dataclass
class Memory:
    """One layer's projected sources, shared by all questions of a product.

    Attributes:
      keys: [P, H, C, N], as the product with queries wants them: what every step of decoding reads
        is turned round once.
      values: [P, H, N, C], as the product with what is paid to each row wants them.
      spans: of the rows.
    """

    keys: jax.Array
    values: jax.Array
    spans: Spans = struct.field(pytree_node=False)


class Attention(nnx.Module):
    """The four projections that self- and cross-attention have in common."""

    def __init__(
        self,
        d_model: int,
        heads: int,
        head_dim: int,
        dropout: float = 0.0,
        dtype: jnp.dtype | str = jnp.float32,
        *,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.head_dim = head_dim
        self.dropout = dropout
        inner = heads * head_dim

        def projection(stddev: float) -> Linear:
            init = normal(stddev)
            axes = ("embed", "heads")
            return Linear(d_model, inner, init=init, axes=axes, dtype=dtype, rngs=rngs)

        self.query = projection((d_model * head_dim) ** -0.5)
        self.key = projection(d_model**-0.5)
        self.value = projection(d_model**-0.5)
        init = normal(inner**-0.5)
        axes = ("heads", "embed")
        self.out = Linear(inner, d_model, init=init, axes=axes, dtype=dtype, rngs=rngs)

    def split(self, x: jax.Array) -> jax.Array:
        """[..., H * C] to [..., H, C]."""
        return x.reshape(*x.shape[:-1], self.heads, self.head_dim)

    def merge(self, x: jax.Array) -> jax.Array:
        """[..., H, C] to [..., H * C]."""
        return x.reshape(*x.shape[:-2], self.heads * self.head_dim)


class SelfAttention(Attention):
    """Attention of a sequence to itself, or, with a cache, of new positions to all before them."""

    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array,
        mask: jax.Array,
        key: jax.Array | None = None,
        *,
        cache: KVCache | None = None,
        start: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache | None]:
        """Attends from x [..., L, D] to itself, or to `cache` once x is written into it.

        Args:
          x: float [..., L, D].
          bias: float32 [H, L, K], where K is M with a cache; else, at most L, the first of x that
            can be seen at all.
          mask: bool, broadcastable to [..., L, K]: who may be seen by whom.
          key: turns dropout of the probabilities on.
          cache: what earlier calls projected, [..., H, M, C].
          start: int scalar, where in the cache x is written.

        Returns:
          [..., L, D] and the cache with x written into it (None without a cache).
        """
        seen = x if cache is not None else x[..., : bias.shape[-1], :]
        query, keys, values = (
            jnp.swapaxes(self.split(f(rows)), -3, -2)
            for f, rows in ((self.query, x), (self.key, seen), (self.value, seen))
        )
        if cache is not None:
            place = (*(0,) * (keys.ndim - 2), start, 0)
            keys = jax.lax.dynamic_update_slice(cache.keys, keys, place)
            values = jax.lax.dynamic_update_slice(cache.values, values, place)
            cache = KVCache(keys, values)
        scores = jnp.einsum(
            "...hlc,...hkc->...hlk", query, keys, preferred_element_type=jnp.float32
        )
        weights = masked_softmax(add_shared(scores, bias), jnp.expand_dims(mask, -3))
        weights = dropout(weights, self.dropout, key).astype(values.dtype)
        y = jnp.einsum("...hlk,...hkc->...lhc", weights, values)
        return self.out(self.merge(y)), cache


class CrossAttention(Attention):
    """Attention of P x Q answers to a weighted sum of their product's S sources.

    A memory of its own for every answer, the sum already taken, is the case S = 1 with the
    questions counted as products (P' = P Q, Q' = 1) and no weights.
    """

    def project(self, sources: Rows) -> Memory:
        """Projects rows [P, N, D] once for all questions and all decoding steps."""
        keys, values = (self.split(f(sources.values)) for f in (self.key, self.value))
        return Memory(keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3), sources.spans)

    def __call__(
        self,
        x: jax.Array,
        memory: Memory,
        weights: jax.Array | None,
        valid: jax.Array,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from x [P, Q, L, D] to e_qk = sum_s weights_qsk * source_sk.

        Args:
          x: float [P, Q, L, D].
          memory: what `project` returned.
          weights: float [P, Q, S, K]; None is one everywhere.
          valid: bool [P, Q, K], the positions of e that hold something.
          key: turns dropout of the probabilities on.

        Returns:
          [P, Q, L, D].
        """
        products, questions, length, _ = x.shape
        shape = (products, self.heads, questions, length, -1)
        # A product's questions are one matrix, of Q L rows.
        query = self.query(x).reshape(products, -1, self.heads, self.head_dim)
        scores = jnp.einsum(
            "pmhc,phcn->phmn", query, memory.keys, preferred_element_type=jnp.float32
        )
        if weights is not None:
            weights = weights.astype(jnp.float32)[:, None, :, None]  # [P, 1, Q, 1, S, K]
        scores = spread(scores.reshape(shape), weights, memory.spans, valid.shape[-1])
        shares = masked_softmax(scores, valid[:, None, :, None])  # [P, H, Q, L, K]
        shares = fold(dropout(shares, self.dropout, key), weights, memory.spans)
        shares = shares.reshape(products, self.heads, questions * length, -1)
        y = jnp.einsum("phmn,phnc->pmhc", shares.astype(memory.values.dtype), memory.values)
        return self.out(self.merge(y)).reshape(x.shape)
