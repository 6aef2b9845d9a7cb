"""What encoders give: rows that stand for the K tokens of a source or a question.

Shapes: B batch, P products, K tokens, D width, n rows, of which some stand for several tokens: see
`nn.rows`.
"""

from flax import struct
import jax
import jax.numpy as jnp

from moemoe_jax.nn.rows import REPEATS, Filling, Rows, join, repeat_of


@struct.dataclass
class Encoded:
    """Encoder outputs for K tokens.

    Attributes:
      rows: float [B, n, D], n <= K.
      valid: bool [B, K], False at padding.
      repeat: how the rows fill the tokens.
    """

    rows: jax.Array
    valid: jax.Array
    repeat: Filling = struct.field(pytree_node=False, default="pad")


def join_sources(sources: tuple[Encoded, ...]) -> Rows:
    """The rows of all sources, one after the other."""
    return join([source.rows for source in sources], [source.repeat for source in sources])


def real_tokens(encoded: Encoded) -> jax.Array:
    """How many real tokens each row stands for, float32 [B, n]."""
    real = encoded.valid.astype(jnp.float32)
    return repeat_of(encoded.repeat).fold(real, encoded.rows.shape[1])


def mean_pool(encoded: Encoded) -> jax.Array:
    """The mean over the real tokens, float32 [B, D]; a row of padding gives zero."""
    counts = real_tokens(encoded)
    total = jnp.sum(encoded.rows.astype(jnp.float32) * counts[..., None], axis=1)
    return total / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1.0)


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
