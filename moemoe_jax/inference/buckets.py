"""The few shapes that batches of a stream come in, so that few programs are compiled.

Texts are cut after the longest of a batch and encoded at the next of a few lengths; the last batch
of a window has the next of a few sizes. Whether encoding less padding leaves every answer as it is
depends on the model, and where it does not, there is one length.

Shapes: P products, K source tokens, U distinct questions.
"""

from moemoe_jax.models.config import MoEMoEConfig
from moemoe_jax.models.gates import GATES

_TOKENS = 8  # lengths are multiples of this


def padding_is_read(model: MoEMoEConfig) -> str:
    """Why what stands at a text's padding changes answers or source weights; "" where it does not.

    Elsewhere a text's padding has no weight (`padding=zero`), or no token that the decoder sees is
    padding in every text (`mask=context`, and `union` without an image).
    """
    fusion, sees_image = model.fusion, model.has("image") and model.fusion.mask == "union"
    mixtures = (model.moe_layers.context_encoder, model.moe.capacity_factor)
    if mixtures[0] != "none" and mixtures[1] is not None:
        return "the context encoder's experts have a capacity, which grows with the padded length"
    if fusion.padding == "zero":
        return ""
    if fusion.mask == "ones" or sees_image:
        return (
            f"model.fusion.padding=read with mask={fusion.mask} shows the decoder what the encoder "
            "gives at padding"
        )
    if GATES[fusion.gate].reads_sources:
        return (
            f"model.fusion.gate={fusion.gate} with padding=read weighs what the encoder gives at "
            "padding"
        )
    return ""


def text_lengths(model: MoEMoEConfig, count: int) -> tuple[int, ...]:
    """At most `count` lengths, growing: K, half of it, a quarter..., where padding is not read."""
    longest = model.text_length
    if not model.has("text") or padding_is_read(model):
        return (longest,)
    halves = (-(-longest // 2**i // _TOKENS) * _TOKENS for i in range(count))
    return tuple(sorted({min(longest, half) for half in halves if half}))


def batch_sizes(products: int, devices: int) -> tuple[int, ...]:
    """P and, for a last batch that is not full, fourths of it that the devices divide."""
    sizes = {products}
    while (size := -(-min(sizes) // 4 // devices) * devices) < min(sizes):
        sizes.add(size)
    return tuple(sorted(sizes))


def question_tables(most: int, usual: int) -> tuple[int, ...]:
    """Sizes U of a batch's question table: the usual one, twice that... up to the most."""
    sizes = [min(most, max(usual, 1))]
    while sizes[-1] < most:
        sizes.append(min(most, 2 * sizes[-1]))
    return tuple(sizes)


def smallest(sizes: tuple[int, ...], needed: int) -> int:
    """The first of growing sizes that is large enough."""
    return next(size for size in sizes if size >= needed)
