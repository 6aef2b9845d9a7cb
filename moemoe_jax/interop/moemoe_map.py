"""The names of a whole MoEMoE in one file: those of its parameters, whatever way they are stored.

A name is the path of a parameter with dots between the parts. A stack's layers are numbered from 0,
also where they are stored stacked; experts are apart, each under its number:

    decoder_embedding.table                                            [V, D]
    context_encoder.stack.3.self_attention.query.kernel                [D, H C]: in, out
    decoder.stack.5.feed_forward.router.kernel                         [D, E]
    decoder.stack.5.feed_forward.wi_0.kernel.2                         [D, F], expert 2 of layer 5
    image_encoder.stages.2.blocks.1.attention.logit_scale              [H, 1, 1]

Kernels are [in, out], a convolution's [height, width, in, out]; all is float32.
"""

from collections.abc import Iterable

from moemoe_jax.interop.maps import Rule, TensorMap

_LETTERS = "abcdefgh"


def moemoe_map(slots: Iterable[str]) -> TensorMap:
    """The map of a file of a whole model, from the names of the slots of the one to fill.

    Args:
      slots: names.
    """
    patterns = {_pattern(name): None for name in slots}
    # A dense block's tensors, for a model that has experts in its place.
    dense = {p.rpartition("/")[0]: None for p in patterns if p.endswith("}")}
    rules = tuple(Rule(p.replace("/", "."), f"model/{p}") for p in (*patterns, *dense))
    return TensorMap(rules, {"model": ("",)})


def _pattern(name: str) -> str:
    """A name with a letter for each number."""
    letters = iter(_LETTERS)
    parts = [f"{{{next(letters)}}}" if part.isdigit() else part for part in name.split("/")]
    return "/".join(parts)
