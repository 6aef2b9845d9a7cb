"""MoEMoE: question-guided dense and sparse mixture-of-experts over several sources.

The model is four steps, and a caller may keep what the earlier ones gave:

    encode_question   Q = T5(q)                     once per distinct question     eq 1
    encode_sources    C = T5(c), I = Swin(i)        once per product               eqs 1-3
    fuse              e = Σ_s w_s(Q) ∗ S_s          scalars per question           eqs 4-5
    decode            answer = decoder(e)           sparse experts inside          eqs 8-10

Shapes: P products, Q questions per product, U distinct questions, S sources, K tokens, J of a
question, D width, L answer tokens, V vocabulary.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from moemoe_jax.models.alignment import Alignment
from moemoe_jax.models.config import MoEMoEConfig
from moemoe_jax.models.encoded import Encoded, extend_text, join_sources, mean_pool, repeat_image
from moemoe_jax.models.fusion import Fused, fusion_valid, literal
from moemoe_jax.models.gates import GATES, counting_tokens, gate_weights, source_shares
from moemoe_jax.models.outputs import Outputs, Stats
from moemoe_jax.nn import rng
from moemoe_jax.nn.linear import Linear
from moemoe_jax.nn.params import normal
from moemoe_jax.nn.swinv2 import SwinV2
from moemoe_jax.nn.t5 import T5Decoder, T5Encoder, lm_head, readout, scores, token_embedding
from moemoe_jax.parallel.axes import constrain


class MoEMoE(nnx.Module):
    """The whole model; see the module's text for its steps."""

    def __init__(self, config: MoEMoEConfig, *, rngs: nnx.Rngs):
        self.config = config
        text, layers = config.text, config.moe_layers
        width, sources = text.d_model, len(config.sources)

        def encoder(stack: str) -> T5Encoder:
            return T5Encoder(
                text, moe=config.moe, moe_layers=layers.of(stack, text.num_layers), rngs=rngs
            )

        def linear(inputs: int, **options) -> Linear:
            init = normal(inputs**-0.5)
            return Linear(inputs, width, rngs=rngs, init=init, dtype=text.dtype, **options)

        self.decoder_embedding = token_embedding(text, rngs=rngs)
        shared = config.share_embeddings != "none"
        has_text = config.has("text")
        self.context_embedding = (
            None if shared or not has_text else token_embedding(text, rngs=rngs)
        )
        self.context_encoder = encoder("context_encoder") if has_text else None
        if config.question_encoder:
            own = config.share_embeddings != "all"
            self.question_embedding = token_embedding(text, rngs=rngs) if own else None
            self.question_encoder = encoder("question_encoder")
            self.alignment = Alignment(config.alignment, sources, width, rngs=rngs)
        self.start = linear(width, axes=("embed", None)) if config.question_start else None
        if config.has("image"):
            self.image_encoder = SwinV2(config.vision, rngs=rngs)
            channels = config.vision.width
            self.image_projection = (
                linear(channels, axes=(None, "embed"), use_bias=True) if channels != width else None
            )
        self.gate = GATES[config.fusion.gate](sources, width, rngs=rngs)
        self.decoder = T5Decoder(
            text,
            moe=config.moe,
            moe_layers=layers.of("decoder", text.num_decoder_layers),
            rngs=rngs,
        )
        self.lm_head = None if text.tie_word_embeddings else lm_head(text, rngs=rngs)

    # --- the four steps ---------------------------------------------------------------------------

    def encode_question(
        self, ids: jax.Array, key: jax.Array | None = None
    ) -> tuple[Encoded, Stats]:
        """Encodes distinct questions, int [U, J <= K] with 0 as padding (eq 1).

        Where a question is read at all K positions, its padding is encoded up to there.
        """
        table = self.question_embedding or self.decoder_embedding
        runs = self.config.question_runs(ids.shape[1])
        runs = runs if sum(runs) > ids.shape[1] else None
        return self._encode_text("question_encoder", self.question_encoder, table, ids, key, runs)

    def encode_sources(
        self, sources: dict[str, jax.Array], key: jax.Array | None = None
    ) -> tuple[tuple[Encoded, ...], Stats]:
        """Encodes the products' sources, each of which stands for K tokens (eqs 1-3).

        Args:
          sources: by name, int [P, K] token ids or uint8 [P, H, W, 3] pixels. Texts may come with
            fewer tokens: what encoding their padding would have given is then zero.
          key: a PRNG key in training, None for deterministic.

        Returns:
          S encodings of P products, in the order of `config.sources`, and the mixtures' statistics.
        """
        keys = rng.split(key, len(self.config.sources))
        encoded, stats = [], {}
        for spec, source_key in zip(self.config.sources, keys, strict=True):
            if spec.kind == "image":
                encoded.append(self._encode_image(sources[spec.name], source_key))
                continue
            table = self.context_embedding or self.decoder_embedding
            name = f"context_encoder.{spec.name}"
            text, found = self._encode_text(
                name, self.context_encoder, table, sources[spec.name], source_key
            )
            encoded.append(extend_text(text, self.config.text_length))
            stats |= found
        return tuple(encoded), stats

    def fuse(
        self,
        question: Encoded | None,
        index: jax.Array,
        sources: tuple[Encoded, ...],
        present: jax.Array,
    ) -> Fused:
        """Weighs the sources by the question (eqs 4-5).

        Args:
          question: U distinct questions; None without a question encoder.
          index: int [P, Q], which question each product is asked.
          sources: S encodings of P products, of K tokens each.
          present: bool [P, S], False where a product lacks a source.
        """
        config = self.config
        rows = join_sources(sources)
        real = jnp.stack([source.valid for source in sources], axis=1)
        counts = counting_tokens(real, present, config.fusion.padding)
        logits = self.gate(question, index, rows, real.shape[-1])
        weights = gate_weights(logits, counts, config.fusion.gate_norm)
        valid = fusion_valid(
            real,
            present,
            tuple(spec.kind == "text" for spec in config.sources),
            config.fusion.mask,
        )
        return Fused(
            sources=rows,
            weights=weights,
            valid=jnp.broadcast_to(valid[:, None], (*index.shape, valid.shape[-1])),
            shares=source_shares(weights, counts),
        )

    def decode(
        self,
        fused: Fused,
        inputs: jax.Array,
        valid: jax.Array,
        question: jax.Array | None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Stats]:
        """Reads the sources for the answer tokens that follow `inputs` (teacher forcing).

        Args:
          fused: from `fuse`.
          inputs: int [P, Q, L], the answer shifted right (starts with padding, id 0).
          valid: bool [P, Q, L]; the others take no expert slot and enter no statistic.
          question: float [P, Q, D] mean question vectors, or None without a question encoder.
          key: a PRNG key in training, None for deterministic.

        Returns:
          hidden states, float [P, Q, L, D], which `logits` scores the vocabulary by, and the
          mixtures' statistics.
        """
        embedded = self.embed_answer(inputs)
        if self.start is not None:
            embedded = embedded.at[:, :, 0].add(self.start(question))
        rows, memory, weights, memory_valid = self.read(fused)
        hidden, stats = self.decoder(
            embedded.reshape(*rows, *embedded.shape[2:]),
            valid.reshape(*rows, -1),
            memory,
            weights,
            memory_valid,
            key,
            question=None if question is None else question.reshape(*rows, -1),
        )
        hidden = hidden.reshape(*inputs.shape, -1)
        return hidden, {f"decoder/{i}": s for i, s in stats.items()}

    # --- pieces of `decode`, which decoding token by token uses as well ---------------------------

    def embed_answer(self, inputs: jax.Array) -> jax.Array:
        """Embeds int [P, Q, L]; to a start token, `start` of the question is still to be added."""
        return self.decoder_embedding(inputs)

    def read(self, fused: Fused):
        """Projects what cross-attention reads, once for all answer tokens.

        Returns:
          the decoder's (rows, questions) batch shape, its memory, the weights and the mask. On the
          shared path that shape is (P, Q); on the literal one e is built and it is (P·Q, 1).
        """
        if self.config.fusion.path == "literal":
            fused = literal(fused)
        memory = self.decoder.project(fused.sources)
        return fused.valid.shape[:2], memory, fused.weights, fused.valid

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores the vocabulary: [..., D] → float32 [..., V]."""
        return scores(*self._readout(hidden))

    def _readout(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        head = self.lm_head or self.decoder_embedding
        return readout(hidden, head, self.config.text.scales_logits)

    # --- the whole --------------------------------------------------------------------------------

    def present(self, batch: dict) -> jax.Array:
        """Which sources each product has: bool [P, S]."""
        return jnp.stack([batch["source_valid"][s.name] for s in self.config.sources], axis=1)

    def encode(
        self, batch: dict, key: jax.Array | None = None
    ) -> tuple[Encoded | None, tuple[Encoded, ...], Stats]:
        """Runs the encoders on a batch: the question's encoding, the sources' and statistics."""
        keys = rng.split(key, 2)
        sources, stats = self.encode_sources(self.texts_that_are_there(batch), keys[0])
        if not self.config.question_encoder:
            return None, sources, stats
        question, found = self.encode_question(batch["question_ids"], keys[1])
        return question, sources, stats | found

    def texts_that_are_there(self, batch: dict) -> dict[str, jax.Array]:
        """The sources, with a text that a product lacks as padding: it takes no expert slot."""
        sources = dict(batch["sources"])
        for spec in self.config.sources:
            if spec.kind == "text":
                there = batch["source_valid"][spec.name][:, None]
                sources[spec.name] = jnp.where(there, sources[spec.name], 0)
        return sources

    def question_vectors(self, question: Encoded | None, index: jax.Array) -> jax.Array | None:
        """The mean vector of each asked question, [P, Q, D], in the compute dtype."""
        if question is None:
            return None
        return mean_pool(question).astype(question.rows.dtype)[index]

    def __call__(self, batch: dict, key: jax.Array | None = None) -> Outputs:
        """Runs a whole training batch; `key` None is deterministic.

        Args:
          batch: as `data.batching` makes it: question_ids [U, J], question_index and question_valid
            [P, Q], answer_ids [P, Q, L], and sources and source_valid by name.
          key: a PRNG key in training.
        """
        keys = rng.split(key, 2)
        return self.read_encoded(batch, self.encode(batch, keys[0]), keys[1])

    def read_encoded(
        self,
        batch: dict,
        encoded: tuple[Encoded | None, tuple[Encoded, ...], Stats],
        key: jax.Array | None = None,
        align: bool = True,
    ) -> Outputs:
        """What follows the encoders in a training batch.

        Args:
          batch: as above; neither the sources nor `question_ids` are looked at.
          encoded: what `encode` gave.
          key: a PRNG key in training, None for deterministic.
          align: whether to compute the alignment losses, which the encodings alone decide.
        """
        question, sources, stats = encoded
        index, asked = batch["question_index"], batch["question_valid"]
        present = self.present(batch)
        fused = self.fuse(question, index, sources, present)
        answer = batch["answer_ids"]
        inputs = jnp.pad(answer[..., :-1], ((0, 0), (0, 0), (1, 0)))
        vectors = self.question_vectors(question, index)
        hidden, found = self.decode(fused, inputs, (answer != 0) & asked[..., None], vectors, key)
        nothing = jnp.zeros((0,), jnp.float32)
        alignment, variance = (
            (nothing, nothing)
            if question is None or not align
            else self.alignment(question, index, asked, sources, present)
        )
        hidden, vocabulary = self._readout(hidden)
        return Outputs(
            hidden=hidden,
            vocabulary=vocabulary,
            alignment=alignment,
            alignment_variance=variance,
            source_weights=fused.shares,
            moe=stats | found,
        )

    def _encode_text(self, name, encoder, table, ids, key, runs=None) -> tuple[Encoded, Stats]:
        """Encodes int [B, J], and the `runs` of padding that follows (see `nn.padding`)."""
        valid = ids != 0
        if runs is not None:
            ids = jnp.pad(ids, ((0, 0), (0, len(runs) - ids.shape[1])))
        hidden, stats = encoder(table(ids), valid, key, runs=runs)
        text = Encoded(hidden, valid)
        if runs is not None:
            text = extend_text(text.replace(repeat=runs), sum(runs))
        return text, {f"{name}/{i}": s for i, s in stats.items()}

    def _encode_image(self, pixels: jax.Array, key: jax.Array | None) -> Encoded:
        config = self.config
        mean, std = jnp.asarray(config.image_mean), jnp.asarray(config.image_std)
        rows = self.image_encoder((pixels / 255.0 - mean) / std, key)
        if self.image_projection is not None:
            rows = self.image_projection(rows)
        rows = constrain(rows.astype(config.text.dtype), "batch")
        return repeat_image(rows, config.text_length, config.fusion.image_repeat)
