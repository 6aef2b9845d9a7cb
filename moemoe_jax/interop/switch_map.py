"""The names of a Switch Transformer's tensors: a T5 1.0 some of whose feed-forward blocks are
mixtures, with the router and each expert under a name of its own.

Roles: `embedding`, `encoder`, `decoder`, `lm_head`.
"""  # noqa: D205

from moemoe_jax.interop.maps import KERNEL, Roles, Rule, TensorMap
from moemoe_jax.interop.t5_map import SAME_TABLE, UNUSED, feed_forward_rules, frame_rules
from moemoe_jax.nn.t5 import T5Config

_KERNELS = ("wi", "wo")


def mixture_rules(side: str, number: int) -> list[Rule]:
    """The rows of a mixture's router and experts."""
    layer = f"{side}.block.{{i}}.layer.{number}.mlp"
    block = f"{side}/stack/{{i}}/feed_forward"
    experts = [
        Rule(f"{layer}.experts.expert_{{e}}.{k}.weight", f"{block}/{k}/kernel/{{e}}", KERNEL)
        for k in _KERNELS
    ]
    router = Rule(f"{layer}.router.classifier.weight", f"{block}/router/kernel", KERNEL)
    return [router, *experts]


def switch_map(config: T5Config, roles: Roles) -> TensorMap:
    """The map of a Switch Transformer; the arguments are those of `t5_map`.

    Which layers are mixtures is told by the model and by the file, which must agree.
    """
    rules = frame_rules(config)
    for side, number in (("encoder", 1), ("decoder", 2)):
        rules += feed_forward_rules(side, number, "mlp", _KERNELS)
        rules += mixture_rules(side, number)
    tied = (("lm_head.weight", "shared.weight"),) if config.tie_word_embeddings else ()
    return TensorMap(tuple(rules), roles, (*SAME_TABLE, *tied), UNUSED)
