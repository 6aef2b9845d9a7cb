"""Tiny T5s, ours and the Hugging Face PyTorch one, with the same weights."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

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

TINY = T5Config(
    vocab_size=100,
    d_model=32,
    d_kv=8,
    d_ff=64,
    num_heads=4,
    num_layers=2,
    num_decoder_layers=2,
    dropout=0.0,
)
FLAVOURS = {
    "t5": TINY,
    "flan": dataclasses.replace(TINY, activation="gated-gelu", tie_word_embeddings=False),
    "umt5": dataclasses.replace(
        TINY, activation="gated-gelu", tie_word_embeddings=False, per_layer_bias=True
    ),
}


class ToyT5(nnx.Module):
    """A whole sequence-to-sequence T5: B rows are B products with one question each."""

    def __init__(self, config, **mixture):
        rngs = nnx.Rngs(0)
        self.scale = config.scales_logits
        self.embed = token_embedding(config, rngs=rngs)
        self.encoder = T5Encoder(config, **mixture, rngs=rngs)
        self.decoder = T5Decoder(config, **mixture, rngs=rngs)
        self.head = None if config.tie_word_embeddings else lm_head(config, rngs=rngs)

    def encode(self, ids, key=None):
        return self.encoder(self.embed(ids), ids != 0, key)[0]

    def logits(self, hidden):
        return scores(*readout(hidden, self.head or self.embed, self.scale))

    def __call__(self, ids, decoder_ids, key=None):
        """Ids [B, K] and right-shifted answers [B, L] to logits [B, L, V]."""
        memory = self.decoder.project(join([self.encode(ids, key)], ["pad"]))
        decoder_ids = decoder_ids[:, None]
        valid = jnp.ones(decoder_ids.shape, bool)
        read = (memory, None, (ids != 0)[:, None])
        hidden, _ = self.decoder(self.embed(decoder_ids), valid, *read, key)
        return self.logits(hidden)[:, 0]

    def loss(self, ids, labels):
        """Mean cross-entropy over the labels that are not padding (0)."""
        scores = self(ids, jnp.pad(labels, ((0, 0), (1, 0)))[:, :-1])
        nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[..., None], -1)[..., 0]
        return jnp.sum(nll * (labels != 0)) / jnp.sum(labels != 0)


def torch_model(config, seed=0, noise=0.1):
    """The Hugging Face model of `config`, each weight moved a little (its norms start at one)."""
    torch.manual_seed(seed)
    name = "UMT5" if config.per_layer_bias else "T5"
    torch_config = getattr(transformers, f"{name}Config")(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        d_kv=config.d_kv,
        d_ff=config.d_ff,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        num_decoder_layers=config.num_decoder_layers,
        feed_forward_proj=config.activation,
        tie_word_embeddings=config.tie_word_embeddings,
        dropout_rate=config.dropout,
        decoder_start_token_id=0,
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(torch_config).eval()
    if not config.tie_word_embeddings:
        # transformers 5 builds every T5 tied and unties it only when a checkpoint is loaded.
        model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model))
        model.config.tie_word_embeddings = False
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(noise * torch.randn_like(weight))
    return model


def torch_name(path):
    """The Hugging Face name of one of our parameters, and whether it is transposed there."""
    leaf, transposed = path[-2], path[-1] == "kernel"
    if path[0] in ("embed", "head"):
        return {"embed": "shared.weight", "head": "lm_head.weight"}[path[0]], transposed
    side = path[0]
    if leaf == "final_norm":
        return f"{side}.final_layer_norm.weight", False
    shared_bias = "SelfAttention.relative_attention_bias.weight"
    if path[1] == "relative_bias":
        return f"{side}.block.0.layer.0.{shared_bias}", False
    part = path[4]
    block = f"{side}.block.{path[3]}.layer"
    feed_forward = 2 if side == "decoder" else 1
    if part == "relative_bias":
        return f"{block}.0.{shared_bias}", False
    number = {"self_attention": 0, "cross_attention": 1}.get(
        part.removesuffix("_norm"), feed_forward
    )
    if part.endswith("_norm"):
        return f"{block}.{number}.layer_norm.weight", False
    inner = {"self_attention": "SelfAttention", "cross_attention": "EncDecAttention"}.get(
        part, "DenseReluDense"
    )
    short = {"query": "q", "key": "k", "value": "v", "out": "o"}.get(leaf, leaf)
    return f"{block}.{number}.{inner}.{short}.weight", transposed


def from_torch(state, tensors):
    """`state` with its values replaced by `tensors`, a dict from Hugging Face names."""

    def value(path, variable):
        name, transposed = torch_name(path)
        array = tensors[name].detach().numpy()
        return variable.replace(jnp.asarray(array.T if transposed else array))

    return nnx.map_state(value, state)


def pair(config, seed=0):
    """The PyTorch model and ours, with the same weights."""
    theirs = torch_model(config, seed)
    ours = ToyT5(config)
    nnx.update(ours, from_torch(nnx.state(ours), dict(theirs.named_parameters())))
    return theirs, ours


def ids(shape, lengths, seed=0, vocabulary=100):
    """Random token ids, int32, 0 (padding) from each row's length on, before it </s> = 1."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, vocabulary, shape).astype(np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[length - 1], row[length:] = 1, 0
    return tokens
