"""The names of SwinV2's tensors, as transformers writes them. Role: `vision`.

`layernorm_before` and `layernorm_after` are applied after attention and MLP, whatever they are
called: SwinV2 normalises what a sublayer gives.
"""

from collections.abc import Sequence

from moemoe_jax.interop.maps import CONVOLUTION, KERNEL, SAME, Roles, Rule, TensorMap, Transform

_ATTENTION = {
    "attention.self.query": "attention/query",
    "attention.self.key": "attention/key",
    "attention.self.value": "attention/value",
    "attention.output.dense": "attention/out",
    "attention.self.continuous_position_bias_mlp.0": "attention/bias_mlp/in_proj",
    "attention.self.continuous_position_bias_mlp.2": "attention/bias_mlp/out_proj",
    "intermediate.dense": "mlp/in_proj",
    "output.dense": "mlp/out_proj",
}
_NORMS = {"layernorm_before": "attention_norm", "layernorm_after": "mlp_norm"}
# Tables that follow from the window's size; the heads of classification and of masked images.
UNUSED = (
    "encoder.layers.{s}.blocks.{b}.attention.self.relative_coords_table",
    "encoder.layers.{s}.blocks.{b}.attention.self.relative_position_index",
    "embeddings.mask_token",
)
HEADS = ("classifier.weight", "classifier.bias", "decoder.{i}.weight", "decoder.{i}.bias")


def _linear(source: str, target: str, transform: Transform = KERNEL) -> list[Rule]:
    """The rows of a linear map; a bias that a model has not is in no file of it."""
    return [
        Rule(f"{source}.weight", f"{target}/kernel", transform),
        Rule(f"{source}.bias", f"{target}/bias"),
    ]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]


def _rules() -> tuple[Rule, ...]:
    projection = "embeddings.patch_embeddings.projection"
    rules = _linear(projection, "vision/patch_embedding", CONVOLUTION)
    rules += _norm("embeddings.norm", "vision/patch_norm")
    rules += _norm("layernorm", "vision/final_norm")
    stage, ours = "encoder.layers.{s}", "vision/stages/{s}"
    rules.append(
        Rule(f"{stage}.downsample.reduction.weight", f"{ours}/merge/reduction/kernel", KERNEL)
    )
    rules += _norm(f"{stage}.downsample.norm", f"{ours}/merge/norm")
    block, ours = f"{stage}.blocks.{{b}}", f"{ours}/blocks/{{b}}"
    scale = "attention.self.logit_scale"
    rules.append(Rule(f"{block}.{scale}", f"{ours}/attention/logit_scale", SAME))
    for theirs, mine in _ATTENTION.items():
        rules += _linear(f"{block}.{theirs}", f"{ours}/{mine}")
    for theirs, mine in _NORMS.items():
        rules += _norm(f"{block}.{theirs}", f"{ours}/{mine}")
    return tuple(rules)


def swinv2_map(roles: Roles, names: Sequence[str] = ()) -> TensorMap:
    """The map of a SwinV2.

    Args:
      roles: the part of the model that `vision` stands for.
      names: of the file's tensors: a model with a head has a prefix in front of all others.
    """
    prefix = "swinv2." if any(name.startswith("swinv2.") for name in names) else ""
    ignored = (*(prefix + name for name in UNUSED), *HEADS)
    return TensorMap(_rules(), roles, ignored=ignored, prefix=prefix)
