"""One T5 block, encoder's or decoder's, and the configuration that all of T5 is built from.

Shapes: L tokens, K attended tokens, D width, H heads; a leading "..." is [B] rows in an encoder
and [P, Q] products x questions in a decoder.
"""

import dataclasses
from typing import TYPE_CHECKING

from flax import nnx
import jax

from moemoe_jax.nn.attention import CrossAttention, KVCache, RelativeBias, SelfAttention
from moemoe_jax.nn.feed_forward import ACTIVATIONS, FeedForward
from moemoe_jax.nn.norms import RMSNorm
from moemoe_jax.nn.rng import dropout, split
from moemoe_jax.nn.stack import REMATS

if TYPE_CHECKING:
    from moemoe_jax.nn.moe import MoEConfig, MoEStats

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """What a T5 is made of; the defaults are t5-small.

    Attributes:
      vocab_size: V, rows of the embedding table.
      d_model: D, width of the residual stream.
      d_kv: channels of one head.
      d_ff: hidden width of a feed-forward block.
      num_heads: attention heads; num_heads * d_kv need not be d_model.
      num_layers: encoder blocks.
      num_decoder_layers: decoder blocks.
      activation: "relu" (T5 1.0) or "gated-gelu" (T5 1.1, Flan, mT5, umT5).
      tie_word_embeddings: the logits reuse the embedding table.
      scale_logits: whether the hidden states are scaled by d_model^-1/2 for the logits; None means
        that they are where the embeddings are tied, as in every T5 that Google published.
      dropout: rate, everywhere that T5 has dropout.
      relative_buckets: buckets of the relative position bias.
      relative_max_distance: distances from here on share a bucket.
      per_layer_bias: every layer has a position bias of its own (umT5), not one a stack.
      epsilon: of the norms.
      dtype: compute dtype, "float32" or "bfloat16"; parameters are float32.
      scan_layers: store layers stacked and scan over them (compiles faster).
      remat: what the backward pass recomputes: "none", "dots" or "full".
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_heads: int = 8
    num_layers: int = 6
    num_decoder_layers: int = 6
    activation: str = "relu"
    tie_word_embeddings: bool = True
    scale_logits: bool | None = None
    dropout: float = 0.1
    relative_buckets: int = 32
    relative_max_distance: int = 128
    per_layer_bias: bool = False
    epsilon: float = 1e-6
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"

    def __post_init__(self):
        sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers")
        for name in (*sizes, "num_decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        choices = {"activation": ACTIVATIONS, "dtype": DTYPES, "remat": REMATS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose from {', '.join(allowed)}"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if self.epsilon <= 0:
            raise ValueError(f"epsilon is {self.epsilon}; it must be positive")
        if self.relative_buckets < 4 or self.relative_buckets % 4:
            raise ValueError(
                f"relative_buckets is {self.relative_buckets}; it must be a multiple of 4"
            )
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_max_distance is {self.relative_max_distance}; it must exceed"
                f" relative_buckets / 2 = {self.relative_buckets // 2}"
            )

    @property
    def scales_logits(self) -> bool:
        """What `scale_logits` comes to."""
        return self.tie_word_embeddings if self.scale_logits is None else self.scale_logits


def relative_bias(config: T5Config, decoder: bool, rngs: nnx.Rngs) -> RelativeBias:
    """The position bias of a stack, or of one block where each has its own."""
    return RelativeBias(
        config.relative_buckets,
        config.relative_max_distance,
        config.num_heads,
        bidirectional=not decoder,
        stddev=config.d_model**-0.5,
        rngs=rngs,
    )


class T5Block(nnx.Module):
    """Self-attention, cross-attention (in a decoder) and feed-forward, each a pre-norm residual."""

    def __init__(self, config: T5Config, *, decoder: bool, moe: "MoEConfig | None", rngs: nnx.Rngs):
        attention = (config.d_model, config.num_heads, config.d_kv, config.dropout, config.dtype)
        feed_forward = (
            config.d_model,
            config.d_ff,
            config.activation,
            config.dropout,
            config.dtype,
        )

        def norm() -> RMSNorm:
            return RMSNorm(config.d_model, epsilon=config.epsilon, dtype=config.dtype, rngs=rngs)

        self.dropout = config.dropout
        self.self_attention = SelfAttention(*attention, rngs=rngs)
        self.self_attention_norm = norm()
        self.relative_bias = relative_bias(config, decoder, rngs) if config.per_layer_bias else None
        self.cross_attention = CrossAttention(*attention, rngs=rngs) if decoder else None
        self.cross_attention_norm = norm() if decoder else None
        self.is_moe = moe is not None
        if moe is None:
            self.feed_forward = FeedForward(*feed_forward, rngs=rngs)
        else:
            from moemoe_jax.nn.moe import MoEFeedForward

            self.feed_forward = MoEFeedForward(moe, *feed_forward, rngs=rngs)
        self.feed_forward_norm = norm()

    def __call__(
        self,
        x: jax.Array,
        valid: jax.Array,
        *,
        mask: jax.Array,
        bias: jax.Array | None,
        positions: tuple[jax.Array, jax.Array],
        cross: tuple | None = None,
        cache: KVCache | None = None,
        start: jax.Array | int = 0,
        question: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None, "MoEStats | None"]:
        """Runs the block.

        Args:
          x: [..., L, D].
          valid: bool [..., L], the real tokens of x (only a mixture asks).
          mask: bool, broadcastable to [..., L, K] of self-attention.
          bias: float32 [H, L, K], or None where the block has a bias of its own.
          positions: int [L] and [K], those of the queries and of the keys.
          cross: (memory, weights, memory_valid) of `CrossAttention`, in a decoder.
          cache: of self-attention, when decoding.
          start: int scalar, where in the cache x is written.
          question: [..., D], one vector a row, that a mixture may route on.
          key: turns dropout, and a mixture's noise, on.

        Returns:
          [..., L, D], the cache and the mixture's statistics (None where there is none).
        """
        keys = split(key, 6)
        if self.relative_bias is not None:
            bias = self.relative_bias(*positions)
        y, cache = self.self_attention(
            self.self_attention_norm(x), bias, mask, keys[0], cache=cache, start=start
        )
        x = x + dropout(y, self.dropout, keys[1])
        if self.cross_attention is not None:
            y = self.cross_attention(self.cross_attention_norm(x), *cross, keys[2])
            x = x + dropout(y, self.dropout, keys[3])
        y, stats = self.feed_forward_norm(x), None
        if self.is_moe:
            y, stats = self.feed_forward(y, valid, keys[4], question)
        else:
            y = self.feed_forward(y, keys[4])
        return x + dropout(y, self.dropout, keys[5]), cache, stats
