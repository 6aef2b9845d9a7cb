"""T5 encoder and decoder (v1.0, Flan / v1.1 and umT5), with mixtures of experts where asked for.

The token embedding tables live outside, so that stacks can share them or not. The decoder answers
P products x Q questions at once and reads a memory that a product's questions share (see
`attention`).

Shapes: B texts, P products, Q questions, S sources, N rows of all sources, K memory tokens (J of
them before the padding, R rows that differ), L answer tokens, D width, V vocabulary, M cached
positions.
"""

from typing import TYPE_CHECKING

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from moemoe_jax.nn.attention import KVCache
from moemoe_jax.nn.linear import Embed, Linear
from moemoe_jax.nn.norms import RMSNorm
from moemoe_jax.nn.params import normal
from moemoe_jax.nn.rng import dropout, fold, split
from moemoe_jax.nn.rows import Rows
from moemoe_jax.nn.stack import Stack
from moemoe_jax.nn.t5_block import T5Block, T5Config, relative_bias
from moemoe_jax.parallel.axes import constrain

if TYPE_CHECKING:
    from moemoe_jax.nn.moe import MoEConfig, MoEStats


class T5Stack(nnx.Module):
    """What encoder and decoder have in common: blocks, a shared position bias, a last norm."""

    def __init__(
        self,
        config: T5Config,
        layers: int,
        *,
        decoder: bool,
        moe: "MoEConfig | None",
        moe_layers: tuple[int, ...],
        rngs: nnx.Rngs,
    ):
        wrong = sorted(set(moe_layers) - set(range(layers)))
        if wrong:
            raise ValueError(f"moe_layers {wrong} are no layers of a stack of {layers} (from 0)")
        if moe_layers and moe is None:
            raise ValueError(f"moe_layers {sorted(moe_layers)} need a mixture's configuration")
        kinds = ["moe" if index in moe_layers else "dense" for index in range(layers)]

        def make(index: int) -> T5Block:
            chosen = moe if kinds[index] == "moe" else None
            return T5Block(config, decoder=decoder, moe=chosen, rngs=rngs)

        self.config = config
        self.relative_bias = None if config.per_layer_bias else relative_bias(config, decoder, rngs)
        self.stack = Stack(make, kinds, scan=config.scan_layers, remat=config.remat)
        self.final_norm = RMSNorm(
            config.d_model, epsilon=config.epsilon, dtype=config.dtype, rngs=rngs
        )

    def run(
        self,
        embedded: jax.Array,
        valid: jax.Array,
        *,
        positions: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        key: jax.Array | None,
        question: jax.Array | None,
        memory: tuple | None = None,
        weights: jax.Array | None = None,
        memory_valid: jax.Array | None = None,
        cache: tuple | None = None,
        start: jax.Array | int = 0,
    ) -> tuple[jax.Array, tuple, dict[int, "MoEStats"]]:
        """Runs all blocks; the arguments are those of `T5Block`, memory and cache per layer."""
        none = (None,) * len(self.stack.blocks)
        bias = None if self.relative_bias is None else self.relative_bias(*positions)
        keys = split(key, 3)

        def call(block, index, x, inputs):
            layer_memory, layer_cache = inputs
            x = constrain(x, "batch")
            x, layer_cache, stats = block(
                x,
                valid,
                mask=mask,
                bias=bias,
                positions=positions,
                cross=(layer_memory, weights, memory_valid),
                cache=layer_cache,
                start=start,
                question=question,
                key=fold(keys[1], index),
            )
            return x, (layer_cache, stats)

        x = dropout(embedded.astype(self.config.dtype), self.config.dropout, keys[0])
        x, outputs = self.stack(call, x, tuple(zip(memory or none, cache or none, strict=True)))
        cache = tuple(layer_cache for layer_cache, _ in outputs)
        stats = self.stack.by_layer([stats for _, stats in outputs])
        hidden = dropout(self.final_norm(x), self.config.dropout, keys[2])
        return hidden, cache, {i: s for i, s in enumerate(stats) if s is not None}


class T5Encoder(T5Stack):
    """Embedded tokens [B, K, D] to hidden states [B, K, D]; no token sees padding."""

    def __init__(
        self,
        config: T5Config,
        *,
        moe: "MoEConfig | None" = None,
        moe_layers: tuple[int, ...] = (),
        rngs: nnx.Rngs,
    ):
        super().__init__(
            config, config.num_layers, decoder=False, moe=moe, moe_layers=moe_layers, rngs=rngs
        )

    def __call__(
        self,
        embedded: jax.Array,
        valid: jax.Array,
        key: jax.Array | None = None,
        question: jax.Array | None = None,
        runs: tuple[int, ...] | None = None,
    ) -> tuple[jax.Array, dict[int, "MoEStats"]]:
        """Encodes.

        Args:
          embedded: float [B, K, D].
          valid: bool [B, K].
          key: turns dropout on.
          question: [B, D] that mixtures may route on.
          runs: what `padding_runs` gave, for rows of padding that stand for several positions. Then
            `embedded` has those R rows, of which `valid` has the tokens, bool [B, J]. Dropout takes
            the same of all positions of a row.

        Returns:
          The compute dtype's [B, K or R, D], and the statistics of each mixture by layer index.
        """
        rows, tokens = embedded.shape[-2], valid.shape[-1]
        positions = np.arange(rows) if runs is None else np.cumsum(runs) - runs
        hidden, _, stats = self.run(
            embedded,
            jnp.pad(valid, ((0, 0), (0, rows - tokens))),
            positions=(positions, positions[:tokens]),
            mask=valid[..., None, :],
            key=key,
            question=question,
        )
        return hidden, stats


class T5Decoder(T5Stack):
    """Answers for P products x Q questions, reading a memory that a product's questions share."""

    def __init__(
        self,
        config: T5Config,
        *,
        moe: "MoEConfig | None" = None,
        moe_layers: tuple[int, ...] = (),
        rngs: nnx.Rngs,
    ):
        layers = config.num_decoder_layers
        super().__init__(config, layers, decoder=True, moe=moe, moe_layers=moe_layers, rngs=rngs)

    def project(self, sources: Rows) -> tuple:
        """Projects rows [P, N, D] to every layer's `Memory`, once for all questions.

        In the result, P is dimension `self.stack.batch_axis` of every array.
        """

        def call(block, index, carry, _):
            return carry, block.cross_attention.project(sources)

        return self.stack(call, ())[1]

    def __call__(
        self,
        embedded: jax.Array,
        valid: jax.Array,
        memory: tuple,
        weights: jax.Array | None,
        memory_valid: jax.Array,
        key: jax.Array | None = None,
        question: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[int, "MoEStats"]]:
        """Decodes whole answers with teacher forcing.

        Args:
          embedded: float [P, Q, L, D], the answers shifted right.
          valid: bool [P, Q, L], the real tokens among them.
          memory: what `project` returned.
          weights: float [P, Q, S, K], each source token's share for each question; None is one.
          memory_valid: bool [P, Q, K].
          key: turns dropout on.
          question: [P, Q, D] that mixtures may route on.

        Returns:
          The compute dtype's [P, Q, L, D], and the statistics of each mixture by layer index.
        """
        positions = jnp.arange(embedded.shape[-2])
        hidden, _, stats = self.run(
            embedded,
            valid,
            positions=(positions, positions),
            mask=valid[..., None, :] & (positions[None, :] <= positions[:, None]),
            key=key,
            question=question,
            memory=memory,
            weights=weights,
            memory_valid=memory_valid,
        )
        return hidden, stats

    def init_cache(self, products: int, questions: int, max_length: int, beams: int = 1) -> tuple:
        """An empty cache for M = `max_length` positions; P is dimension `stack.batch_axis`.

        It has a slot for each of N = `beams` tokens of a position, and those lie together.
        """
        slots = max_length * beams
        shape = (products, questions, self.config.num_heads, slots, self.config.d_kv)
        zeros = jnp.zeros(shape, self.config.dtype)
        return self.stack.for_each_layer(KVCache(zeros, zeros))

    def step(
        self,
        embedded: jax.Array,
        position: jax.Array,
        cache: tuple,
        memory: tuple,
        weights: jax.Array | None,
        memory_valid: jax.Array,
        question: jax.Array | None = None,
        valid: jax.Array | None = None,
        lineage: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple]:
        """Decodes one more token of each of a question's N answers.

        Args:
          embedded: float [P, Q, N, D].
          position: int scalar below M, where these tokens stand.
          cache: from `init_cache`.
          memory: as for a whole answer, like the following three.
          weights: see there.
          memory_valid: see there.
          question: see there.
          valid: bool [P, Q, N], the rows that are still being answered; the others take no expert
            slot. None is all of them.
          lineage: int [P, Q, N, M], which of the N slots of each position holds an answer's own
            token, this one's too. Beams that continue another then read where that one wrote, and
            nothing is moved in the cache. May be None for N = 1.

        Returns:
          The hidden state [P, Q, N, D] and the cache with this position written.
        """
        beams, slots = embedded.shape[-2], jax.tree.leaves(cache)[0].shape[-2]
        keys = jnp.arange(slots) // beams
        mask = (keys <= position)[None, :]
        if lineage is not None:
            own = lineage[..., None] == jnp.arange(beams)
            mask &= own.reshape(*own.shape[:-2], slots)
        hidden, cache, _ = self.run(
            embedded,
            jnp.ones(embedded.shape[:-1], bool) if valid is None else valid,
            positions=(jnp.broadcast_to(position, (beams,)), keys),
            mask=mask,
            key=None,
            question=question,
            memory=memory,
            weights=weights,
            memory_valid=memory_valid,
            cache=cache,
            start=position * beams,
        )
        return hidden, cache


def token_embedding(config: T5Config, *, rngs: nnx.Rngs) -> Embed:
    """A T5 token embedding table [V, D]."""
    init = normal(1.0)
    return Embed(config.vocab_size, config.d_model, init=init, dtype=config.dtype, rngs=rngs)


def lm_head(config: T5Config, *, rngs: nnx.Rngs) -> Linear:
    """The output projection [D, V] of a T5 whose embeddings are not tied."""
    init = normal(1.0)
    axes, dtype = ("embed", "vocab"), config.dtype
    return Linear(config.d_model, config.vocab_size, init=init, axes=axes, dtype=dtype, rngs=rngs)


def readout(hidden: jax.Array, head: Embed | Linear, scale: bool) -> tuple[jax.Array, jax.Array]:
    """The two factors of the vocabulary's `scores`, in the compute dtype.

    Args:
      hidden: from the decoder, [..., D].
      head: the embedding table, where it is tied, or a projection of its own.
      scale: whether to take hidden * D^-1/2, as `T5Config.scales_logits` says.

    Returns:
      hidden [..., D] and a kernel [D, V].
    """
    kernel = head.weights().T if isinstance(head, Embed) else head.weights()
    hidden = hidden * hidden.shape[-1] ** -0.5 if scale else hidden
    return hidden.astype(head.dtype), kernel


def scores(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """Vocabulary scores (logits), float32 [..., V], of what `readout` returned."""
    found = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return constrain(found, "batch", *(None,) * (found.ndim - 2), "vocab")
