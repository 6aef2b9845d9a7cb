"""Question-guided attention (QGA): the question weighs the sources token by token, eqs 4-5.

The paper fuses an image I and a context C as e = α ∗ I + β ∗ C, with α and β read from the question
at every token. Here the number of sources is free and a source may be missing: e = Σ_s w_s ∗ S_s.

The fusion is linear in the sources, with one scalar per question, source and token, so e need not
be built: T5's cross-attention projects keys and values without a norm or a bias, hence the keys of
e are Σ_s w_s ∗ (S_s W_k). The sources are projected once per product and a question brings only its
scalars. `Fused` is that pair; `literal` builds e, the slow and obvious way, as the oracle.

Shapes: P products, Q questions per product, U distinct questions, S sources, K tokens, D width,
N rows of all sources (n of one), of which some stand for several tokens: see `nn.rows`.
"""

from collections.abc import Callable
import dataclasses

from flax import nnx, struct
import jax
import jax.numpy as jnp

from moemoe_jax.nn.linear import Linear
from moemoe_jax.nn.params import constant, normal, param
from moemoe_jax.nn.rows import REPEATS, Rows, join, parts


@struct.dataclass
class Encoded:
    """Encoder outputs for K tokens.

    Attributes:
      rows: float [B, n, D], n <= K.
      valid: bool [B, K], False at padding.
      repeat: how the rows fill the tokens, a name of `nn.rows.REPEATS`.
    """

    rows: jax.Array
    valid: jax.Array
    repeat: str = struct.field(pytree_node=False, default="pad")


@struct.dataclass
class Fused:
    """What the decoder reads.

    Attributes:
      sources: rows [P, N, D], shared by all the questions of a product.
      weights: float32 [P, Q, S, K], or None for all ones.
      valid: bool [P, Q, K], the tokens that cross-attention may look at.
      shares: float32 [P, Q, S], the mean weight of each source over the tokens where it counts, to
        be reported; None where nothing was weighed.
    """

    sources: Rows
    weights: jax.Array | None
    valid: jax.Array
    shares: jax.Array | None = None


def join_sources(sources: tuple[Encoded, ...]) -> Rows:
    """The rows of all sources, one after the other."""
    return join([source.rows for source in sources], [source.repeat for source in sources])


def literal(fused: Fused) -> Fused:
    """Builds e (eq 5) for every question: the same fusion with P·Q products of one source each."""
    products, questions, length = fused.valid.shape
    by_channel = parts(jnp.swapaxes(fused.sources.values, 1, 2), fused.sources.spans)
    tokens = [
        REPEATS[repeat].spread(x, length)
        for x, (_, repeat) in zip(by_channel, fused.sources.spans, strict=True)
    ]
    weights = fused.weights.astype(fused.sources.values.dtype)
    e = jnp.einsum("pqsk,psdk->pqkd", weights, jnp.stack(tokens, axis=1))
    rows = products * questions
    return Fused(
        sources=join([e.reshape(rows, length, -1)], ["pad"]),
        weights=None,
        valid=fused.valid.reshape(rows, 1, -1),
    )


# --- how an image of n patches becomes K tokens (eq 3) --------------------------------------------

# What `REPEATS` has, or linear interpolation for any K, which gives K different rows.
IMAGE_REPEATS = (*REPEATS, "interpolate")


def check_image_length(repeat: str, image_tokens: int, length: int) -> None:
    """Refuses a text length that `repeat` cannot fill from the image's tokens.

    Raises:
      ValueError: with the lengths and the remedy.
    """
    if repeat in ("tile", "interleave") and length % image_tokens:
        near = max(image_tokens, round(length / image_tokens) * image_tokens)
        raise ValueError(
            f"data.text_length {length} is not a multiple of the {image_tokens} image tokens; "
            f"set data.text_length={near}, or model.fusion.image_repeat=interpolate"
        )
    if repeat == "pad" and length < image_tokens:
        raise ValueError(
            f"data.text_length {length} is shorter than the {image_tokens} image tokens; "
            f"set data.text_length={image_tokens} or more, or model.fusion.image_repeat=interpolate"
        )


def repeat_image(rows: jax.Array, length: int, repeat: str) -> Encoded:
    """Has image rows [P, n, D] stand for the K tokens of a text (eq 3)."""
    filled = rows.shape[1] if repeat == "pad" else length
    valid = jnp.broadcast_to(jnp.arange(length) < filled, (rows.shape[0], length))
    if repeat != "interpolate":
        return Encoded(rows, valid, repeat)
    shape = (rows.shape[0], length, rows.shape[2])
    return Encoded(jax.image.resize(rows, shape, method="linear").astype(rows.dtype), valid)


def extend_text(encoded: Encoded, length: int) -> Encoded:
    """Appends padding to texts that were encoded at fewer than the K tokens."""
    missing = length - encoded.valid.shape[1]
    return encoded.replace(valid=jnp.pad(encoded.valid, ((0, 0), (0, missing))))


# --- the gate: one weight per question, source and token (eq 4) -----------------------------------

# Each says whether it reads the question at each of the K positions, for which questions must be
# that long, and whether it looks at the sources' rows: then cutting a text's padding off may change
# an answer (`inference.buckets`).


class TokenGate(nnx.Module):
    """The paper's gate: FC(Q), read at every one of the K positions, padding included.

    A question is short and a context long, so most positions of Q are padding; T5 gives finite,
    question-dependent values there, which is why they are read and not zeroed.
    """

    reads_positions, reads_sources = True, False

    def __init__(self, sources: int, width: int, *, rngs: nnx.Rngs):
        self.score = _score_layer(sources, width, rngs)

    def __call__(
        self, question: Encoded, index: jax.Array, sources: Rows, length: int
    ) -> jax.Array:
        """Returns logits [P, Q, S, K] from K tokens of U questions and `index` int [P, Q]."""
        return jnp.swapaxes(self.score(question.rows), 1, 2)[index]


class PooledGate(TokenGate):
    """The same weights at every token, from the mean of the question's real tokens."""

    reads_positions = False

    def __call__(
        self, question: Encoded, index: jax.Array, sources: Rows, length: int
    ) -> jax.Array:
        """Returns logits [P, Q, S, K], equal along K."""
        logits = self.score(mean_pool(question))[index]
        return jnp.broadcast_to(logits[..., None], (*logits.shape, length))


class CrossGate(TokenGate):
    """Each source token attends to the question; its weight is read from what it finds there."""

    reads_positions, reads_sources = False, True

    def __call__(
        self, question: Encoded, index: jax.Array, sources: Rows, length: int
    ) -> jax.Array:
        """Returns logits [P, Q, S, K]."""
        tokens, valid = question.rows[index], question.valid[index][:, :, None]
        attention = jnp.einsum("pnd,pqjd->pqnj", sources.values, tokens).astype(jnp.float32)
        attention = jnp.where(valid, attention * tokens.shape[-1] ** -0.5, -1e9)
        probs = jnp.swapaxes(jax.nn.softmax(attention, axis=-1), 2, 3)  # [P, Q, J, N]
        # A token that no row stands for is a vector of zeros: it attends to all alike.
        evenly = jax.nn.softmax(jnp.where(valid, 0.0, -1e9), axis=-1)  # [P, Q, 1, J]
        # Scoring before averaging: FC is linear, so the S scores of each question token suffice.
        scores = jnp.swapaxes(self.score(tokens), 2, 3)  # [P, Q, S, J]
        default = jnp.sum(scores * evenly, axis=-1, keepdims=True)
        found = [
            REPEATS[repeat].spread(
                jnp.einsum("pqjn,pqj->pqn", part, scores[:, :, s]) - default[:, :, s], length
            )
            for s, (part, (_, repeat)) in enumerate(
                zip(parts(probs, sources.spans), sources.spans, strict=True)
            )
        ]
        return default + jnp.stack(found, axis=2)


class LearnedGate(nnx.Module):
    """One learned scalar per source, whatever the question: question guidance removed (WoQG)."""

    reads_positions = reads_sources = False

    def __init__(self, sources: int, width: int, *, rngs: nnx.Rngs):
        self.logits = param(rngs, (sources,), constant(1 / sources), (None,))

    def __call__(
        self, question: Encoded, index: jax.Array, sources: Rows, length: int
    ) -> jax.Array:
        """Returns logits [P, Q, S, K], equal for all questions and tokens."""
        shape = (*index.shape, len(sources.spans), length)
        return jnp.broadcast_to(self.logits[...][:, None], shape)


class UnitGate(nnx.Module):
    """e = Σ_s S_s: every weight is one. No parameters."""

    reads_positions = reads_sources = False

    def __init__(self, sources: int, width: int, *, rngs: nnx.Rngs):
        pass

    def __call__(
        self, question: Encoded, index: jax.Array, sources: Rows, length: int
    ) -> jax.Array:
        """Returns ones [P, Q, S, K]."""
        return jnp.ones((*index.shape, len(sources.spans), length), jnp.float32)


GATES: dict[str, type[nnx.Module]] = {
    "token": TokenGate,
    "pooled": PooledGate,
    "cross": CrossGate,
    "learned": LearnedGate,
    "unit": UnitGate,
}


def _score_layer(sources: int, width: int, rngs: nnx.Rngs) -> Linear:
    # The weights are not normalised in the paper. A bias of 1/S makes e start as the mean of the
    # sources; with zero, the decoder would see near-zero keys and values at the first step.
    layer = Linear(
        width,
        sources,
        rngs=rngs,
        init=normal(0.02 * width**-0.5),
        axes=("embed", None),
        use_bias=True,
        dtype="float32",
    )
    layer.bias[...] = jnp.full((sources,), 1 / sources)
    return layer


# --- normalisation over the sources, where they count ---------------------------------------------

# Whether a source's weight holds at its own padding. A text's encoding there is finite and says
# something of the text, and with "read" (to the letter) it is mixed into e like any other; with
# "zero" those tokens of e are the other sources' alone, which makes an image far easier to read.
PADDINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "read": jnp.ones_like,
    "zero": lambda valid: valid,
}


def counting_tokens(source_valid: jax.Array, present: jax.Array, padding: str) -> jax.Array:
    """Returns bool [P, S, K], where each source counts.

    Args:
      source_valid: bool [P, S, K], the real tokens.
      present: bool [P, S]; a source that a product lacks counts nowhere.
      padding: a name of `PADDINGS`.
    """
    return PADDINGS[padding](source_valid) & present[:, :, None]


def _softmax(logits: jax.Array, counts: jax.Array) -> jax.Array:
    weights = jax.nn.softmax(jnp.where(counts, logits, -1e9), axis=2)
    return jnp.where(counts, weights, 0.0)


GATE_NORMS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "none": lambda logits, counts: jnp.where(counts, logits, 0.0),  # the paper's eqs 4-5
    "softmax": _softmax,
    "sigmoid": lambda logits, counts: jnp.where(counts, jax.nn.sigmoid(logits), 0.0),
}


def gate_weights(logits: jax.Array, counts: jax.Array, norm: str) -> jax.Array:
    """Turns gate logits into source weights.

    Args:
      logits: float [P, Q, S, K].
      counts: bool [P, S, K], from `counting_tokens`; elsewhere a source gets weight zero.
      norm: a name of `GATE_NORMS`.

    Returns:
      float32 [P, Q, S, K].
    """
    return GATE_NORMS[norm](logits.astype(jnp.float32), counts[:, None])


def source_shares(weights: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns the mean of weights [P, Q, S, K] over the tokens that count, float32 [P, Q, S].

    The zeros elsewhere do not enter it: how much a question makes of a text does not depend on
    how long that is. A source that a product lacks has zero.
    """
    return jnp.sum(weights, axis=-1) / jnp.maximum(jnp.sum(counts, axis=-1), 1)[:, None]


# --- which tokens of e the decoder may look at ----------------------------------------------------


def _all_tokens(present_valid: jax.Array, is_text: jax.Array) -> jax.Array:
    return jnp.ones_like(present_valid[:, 0])


def _context_tokens(present_valid: jax.Array, is_text: jax.Array) -> jax.Array:
    return jnp.any(present_valid & is_text[None, :, None], axis=1)


def _union_tokens(present_valid: jax.Array, is_text: jax.Array) -> jax.Array:
    return jnp.any(present_valid, axis=1)


FUSION_MASKS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "ones": _all_tokens,  # e mixes the image into every token, so every token is worth a look
    "context": _context_tokens,  # the literal mask of the text sources: hides tiled patches
    "union": _union_tokens,
}


def fusion_valid(
    source_valid: jax.Array, present: jax.Array, is_text: tuple[bool, ...], mask: str
) -> jax.Array:
    """Returns bool [P, K] from token validity [P, S, K], presence [P, S] and a mask's name."""
    return FUSION_MASKS[mask](source_valid & present[:, :, None], jnp.asarray(is_text))


def mean_pool(encoded: Encoded) -> jax.Array:
    """The mean over the real tokens, float32 [B, D]; a row of padding gives zero."""
    real = encoded.valid.astype(jnp.float32)
    counts = REPEATS[encoded.repeat].fold(real, encoded.rows.shape[1])  # tokens of each row
    total = jnp.sum(encoded.rows.astype(jnp.float32) * counts[..., None], axis=1)
    return total / jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1.0)


@dataclasses.dataclass(frozen=True)
class FusionConfig:
    """The readings of eqs 3-5 that a researcher may compare; each is a name in a registry above.

    Attributes:
      gate: how the question weighs the sources, a name of `GATES`.
      gate_norm: how the weights are normalised over the sources, a name of `GATE_NORMS`.
      image_repeat: how the image is stretched to the text length, a name of `IMAGE_REPEATS`.
      padding: whether a source counts at its own padding, a name of `PADDINGS`.
      mask: which tokens of e the decoder sees, a name of `FUSION_MASKS`.
      path: "shared" projects a product's sources once for all its questions; "literal" builds e
        for each question. The same numbers.
    """

    gate: str = "token"
    gate_norm: str = "none"
    image_repeat: str = "tile"
    padding: str = "read"
    mask: str = "ones"
    path: str = "shared"

    def __post_init__(self):
        names = {
            "gate": GATES,
            "gate_norm": GATE_NORMS,
            "image_repeat": IMAGE_REPEATS,
            "padding": PADDINGS,
            "mask": FUSION_MASKS,
            "path": ("shared", "literal"),
        }
        for field, known in names.items():
            if getattr(self, field) not in known:
                raise ValueError(
                    f"model.fusion.{field} is {getattr(self, field)!r}; choose one of "
                    f"{', '.join(known)}"
                )
