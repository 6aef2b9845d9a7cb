"""A whole text-to-text T5, dense or sparse, by itself: what a text checkpoint holds.

MoEMoE takes its question encoder, context encoder and decoder from one of these.

Shapes: B texts, K tokens of a text, L tokens of an answer, D width, V vocabulary.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from moemoe_jax.models.fusion import Fused
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.rows import join
from moemoe_jax.nn.t5 import (
    T5Config,
    T5Decoder,
    T5Encoder,
    lm_head,
    readout,
    scores,
    token_embedding,
)


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig:
    """What a text model is made of.

    Attributes:
      text: shape of encoder and decoder.
      moe: of the mixture layers.
      encoder_moe, decoder_moe: the layers, from 0, that are mixtures.
    """

    text: T5Config = T5Config()
    moe: MoEConfig = MoEConfig()
    encoder_moe: tuple[int, ...] = ()
    decoder_moe: tuple[int, ...] = ()


class Seq2Seq(nnx.Module):
    """Encoder, decoder and the token tables, as T5 puts them together.

    `start`, `read`, `embed_answer` and `logits` are what `inference.decoding.greedy` asks a model.
    """

    def __init__(self, config: Seq2SeqConfig, *, rngs: nnx.Rngs):
        self.config = config
        text, moe = config.text, config.moe
        self.embedding = token_embedding(text, rngs=rngs)
        self.encoder = T5Encoder(text, moe=moe, moe_layers=config.encoder_moe, rngs=rngs)
        self.decoder = T5Decoder(text, moe=moe, moe_layers=config.decoder_moe, rngs=rngs)
        self.lm_head = None if text.tie_word_embeddings else lm_head(text, rngs=rngs)
        self.start = None

    def encode(self, ids: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Encodes int [B, K], 0 being padding, to [B, K, D]; `key` turns dropout on."""
        return self.encoder(self.embedding(ids), ids != 0, key)[0]

    def __call__(
        self, ids: jax.Array, answer: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Scores the tokens of int answers [B, L] to texts [B, K]: float32 [B, L, V].

        The decoder sees each answer shifted right behind a padding token, as in training.
        """
        memory = self.fuse(self.encode(ids, key), ids)
        shifted = jnp.pad(answer[:, :-1], ((0, 0), (1, 0)))[:, None]
        hidden, _ = self.decoder(
            self.embedding(shifted), (answer != 0)[:, None], *self.read(memory)[1:], key
        )
        return self.logits(hidden)[:, 0]

    def fuse(self, hidden: jax.Array, ids: jax.Array) -> Fused:
        """The memory of a decoder that answers one question a text, with nothing to weigh."""
        return Fused(join([hidden], ["pad"]), weights=None, valid=(ids != 0)[:, None])

    def embed_answer(self, inputs: jax.Array) -> jax.Array:
        """Embeds int [B, 1, L]; the start token is like any other."""
        return self.embedding(inputs)

    def read(self, fused: Fused):
        """Projects what cross-attention reads; (rows, memory, weights, mask) as in `MoEMoE`."""
        memory = self.decoder.project(fused.sources)
        return fused.valid.shape[:2], memory, fused.weights, fused.valid

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores the vocabulary: [..., D] to float32 [..., V]."""
        head = self.lm_head or self.embedding
        return scores(*readout(hidden, head, self.config.text.scales_logits))
