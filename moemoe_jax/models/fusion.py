"""Question-guided attention (QGA): the question weighs the sources token by token, eqs 4-5.

The paper fuses an image I and a context C as e = α ∗ I + β ∗ C, with α and β read from the question
at every token. Here the number of sources is free and a source may be missing: e = Σ_s w_s ∗ S_s.

The fusion is linear in the sources, with one scalar per question, source and token, so e need not
be built: T5's cross-attention projects keys and values without a norm or a bias, hence the keys of
e are Σ_s w_s ∗ (S_s W_k). The sources are projected once per product and a question brings only its
scalars. `Fused` is that pair; `literal` builds e, the slow and obvious way, as the oracle.

Shapes: P products, Q questions per product, S sources, K tokens, D width, N rows of all sources, of
which some stand for several tokens: see `nn.rows`.
"""

from collections.abc import Callable
import dataclasses

from flax import struct
import jax
import jax.numpy as jnp

from moemoe_jax.models.encoded import IMAGE_REPEATS
from moemoe_jax.models.gates import GATE_NORMS, GATES, PADDINGS
from moemoe_jax.nn.rows import Rows, join, parts, repeat_of


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


def literal(fused: Fused) -> Fused:
    """Builds e (eq 5) for every question: the same fusion with P·Q products of one source each."""
    products, questions, length = fused.valid.shape
    by_channel = parts(jnp.swapaxes(fused.sources.values, 1, 2), fused.sources.spans)
    tokens = [
        repeat_of(repeat).spread(x, length)
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


@dataclasses.dataclass(frozen=True)
class FusionConfig:
    """The readings of eqs 3-5 that a researcher may compare; each is a name in a registry.

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
