"""The names of T5's tensors: T5 1.0, T5 1.1, Flan-T5, mT5 and umT5, as transformers writes them.

Roles: `embedding`, `encoder`, `decoder`, `lm_head`. T5 names the sublayers of a block by number: in
an encoder 0 is attention and 1 the feed-forward block, a decoder has cross-attention between them.
"""

from moemoe_jax.interop.maps import KERNEL, Roles, Rule, TensorMap
from moemoe_jax.nn.t5 import T5Config

_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "out"}
_BIAS = "SelfAttention.relative_attention_bias.weight"
# The same table under other names, which some writers leave in; and a bias that T5 once had room
# for and never used.
SAME_TABLE = tuple(
    (f"{side}.embed_tokens.weight", "shared.weight") for side in ("encoder", "decoder")
)
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def attention_rules(side: str, number: int, theirs: str, ours: str) -> list[Rule]:
    """The rows of an attention sublayer and its norm."""
    layer = f"{side}.block.{{i}}.layer.{number}"
    block = f"{side}/stack/{{i}}/{ours}"
    rules = [
        Rule(f"{layer}.{theirs}.{q}.weight", f"{block}/{query}/kernel", KERNEL)
        for q, query in _PROJECTIONS.items()
    ]
    return [Rule(f"{layer}.layer_norm.weight", f"{block}_norm/scale"), *rules]


def feed_forward_rules(side: str, number: int, theirs: str, kernels: tuple[str, ...]) -> list[Rule]:
    """The rows of a feed-forward sublayer and its norm."""
    layer = f"{side}.block.{{i}}.layer.{number}"
    block = f"{side}/stack/{{i}}/feed_forward"
    rules = [Rule(f"{layer}.{theirs}.{k}.weight", f"{block}/{k}/kernel", KERNEL) for k in kernels]
    return [Rule(f"{layer}.layer_norm.weight", f"{block}_norm/scale"), *rules]


def bias_rule(side: str, per_layer: bool) -> Rule:
    """The row of the position bias: every layer's own, or one that the first layer holds."""
    if per_layer:
        return Rule(
            f"{side}.block.{{i}}.layer.0.{_BIAS}", f"{side}/stack/{{i}}/relative_bias/table"
        )
    return Rule(f"{side}.block.0.layer.0.{_BIAS}", f"{side}/relative_bias/table")


def frame_rules(config: T5Config) -> list[Rule]:
    """The rows of all but the feed-forward blocks."""
    rules = [Rule("shared.weight", "embedding/table")]
    if not config.tie_word_embeddings:
        rules.append(Rule("lm_head.weight", "lm_head/kernel", KERNEL))
    for side in ("encoder", "decoder"):
        rules += attention_rules(side, 0, "SelfAttention", "self_attention")
        rules.append(bias_rule(side, config.per_layer_bias))
        rules.append(Rule(f"{side}.final_layer_norm.weight", f"{side}/final_norm/scale"))
    return rules + attention_rules("decoder", 1, "EncDecAttention", "cross_attention")


def t5_map(config: T5Config, roles: Roles) -> TensorMap:
    """The map of a dense T5.

    Args:
      config: of the T5; decides which tensors there are.
      roles: the parts of the model that embedding, encoder, decoder and lm_head stand for.
    """
    kernels = ("wi_0", "wi_1", "wo") if config.activation == "gated-gelu" else ("wi", "wo")
    rules = frame_rules(config)
    for side, number in (("encoder", 1), ("decoder", 2)):
        rules += feed_forward_rules(side, number, "DenseReluDense", kernels)
    # A tied head may be in the file all the same.
    tied = (("lm_head.weight", "shared.weight"),) if config.tie_word_embeddings else ()
    return TensorMap(tuple(rules), roles, (*SAME_TABLE, *tied), UNUSED)
