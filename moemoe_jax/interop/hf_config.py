"""config.json for our models, as transformers reads it: the inverse of `text_config`.

Not all that a MoEMoE can be has a class in transformers; what has none is said with its reason.
"""

from collections.abc import Sequence
from typing import Any

from moemoe_jax.data.config import DataConfig
from moemoe_jax.interop.text_config import sparse_layers
from moemoe_jax.models.seq2seq import Seq2SeqConfig
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.routing import JITTER
from moemoe_jax.nn.swinv2 import SwinV2Config
from moemoe_jax.nn.t5 import T5Config

CLASSES = {"t5": "T5", "umt5": "UMT5", "switch_transformers": "SwitchTransformers"}


class NoClassError(ValueError):
    """Why transformers has no class for a model."""


def text_kind(config: Seq2SeqConfig) -> str:
    """The model type of transformers that computes what a text model does.

    An mT5 is a T5 whose logits are not scaled, and comes out as one.

    Raises:
      NoClassError: there is none.
    """
    sparse = bool(config.encoder_moe or config.decoder_moe)
    if not sparse:
        return "umt5" if config.text.per_layer_bias else "t5"
    _check_mixture(config.text, config.moe)
    return "switch_transformers"


def _check_mixture(text: T5Config, moe: MoEConfig) -> None:
    """Refuses what a Switch Transformer is not."""
    wanted = {
        "model.text.activation": (text.activation, "relu"),
        "model.text.per_layer_bias": (text.per_layer_bias, False),
        "model.moe.top_k": (moe.top_k, 1),
        "model.moe.gate": (moe.gate, "softmax_topk"),
        "model.moe.routing_level": (moe.routing_level, "token"),
        "model.moe.capacity_factor": (moe.capacity_factor, None),
    }
    for name, (value, needed) in wanted.items():
        if value != needed:
            raise NoClassError(
                f"it has mixtures with {name} {value}, and transformers' only sparse T5, the "
                f"Switch Transformer, has {needed}"
            )


def text_config(config: Seq2SeqConfig, longest: int, encoder_only: bool = False) -> dict[str, Any]:
    """The config.json of a text model.

    Args:
      config: of the model.
      longest: tokens of the longest row; so many of one expert's are kept, which is all of them.
      encoder_only: whether it is the encoder alone.

    Raises:
      NoClassError: transformers has no class for it.
    """
    kind, text = text_kind(config), config.text
    scaled = text.scales_logits
    values = {
        "architectures": [
            CLASSES[kind] + ("EncoderModel" if encoder_only else "ForConditionalGeneration")
        ],
        "model_type": kind,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "vocab_size": text.vocab_size,
        "d_model": text.d_model,
        "d_kv": text.d_kv,
        "d_ff": text.d_ff,
        "num_heads": text.num_heads,
        "num_layers": text.num_layers,
        "num_decoder_layers": text.num_decoder_layers,
        "relative_attention_num_buckets": text.relative_buckets,
        "relative_attention_max_distance": text.relative_max_distance,
        "layer_norm_epsilon": text.epsilon,
        "dropout_rate": text.dropout,
        # Transformers 5 makes it true for every T5, and warns of an untied head, also in a folder
        # of its own: no config keeps it from that, and the head is loaded as it is.
        "tie_word_embeddings": scaled,
        "dtype": "float32",
    }
    if kind == "switch_transformers":
        return values | _switch(config, longest)
    values["feed_forward_proj"] = text.activation
    return values | ({"scale_decoder_outputs": scaled} if kind == "t5" else {})


def _switch(config: Seq2SeqConfig, longest: int) -> dict[str, Any]:
    text, moe = config.text, config.moe
    return {
        "dense_act_fn": "relu",
        "num_experts": moe.num_experts,
        "expert_capacity": longest,
        "router_bias": False,
        "router_dtype": "float32",
        "router_jitter_noise": JITTER if moe.noise == "jitter" else 0.0,
        "num_sparse_encoder_layers": _sparse_count(text.num_layers, config.encoder_moe),
        "num_sparse_decoder_layers": _sparse_count(text.num_decoder_layers, config.decoder_moe),
    }


def _sparse_count(layers: int, sparse: Sequence[int]) -> int:
    """The number in the config that makes just these layers mixtures.

    Raises:
      NoClassError: none does.
    """
    for count in range(1, layers + 2):  # more than there are layers makes none a mixture
        if sparse_layers(layers, count) == tuple(sparse):
            return count
    raise NoClassError(f"a Switch Transformer of {layers} layers cannot have mixtures in {sparse}")


def copies(kind: str, text: T5Config) -> dict[str, str]:
    """Tensors that a file of an untied config must hold beside those that they equal, by name.

    A head that is tied and not scaled is, to transformers, one that is not tied.
    """
    if text.scales_logits:
        return {}
    head = {"lm_head.weight": "shared.weight"} if text.tie_word_embeddings else {}
    if kind != "switch_transformers":
        return head
    return head | {
        f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")
    }


def vision_config(config: SwinV2Config) -> dict[str, Any]:
    """The config.json of an image model.

    Raises:
      NoClassError: transformers has no class for it.
    """
    if config.absolute_positions:
        # Its own option of that name expects one position more than an image has patches.
        raise NoClassError("it has model.vision.absolute_positions, and Swinv2Model has none")
    return {
        "architectures": ["Swinv2Model"],
        "model_type": "swinv2",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.heads),
        "window_size": config.window_size,
        "pretrained_window_sizes": list(config.pretrained_window_sizes),
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "drop_path_rate": config.drop_path,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": config.epsilon,
        "dtype": "float32",
    }


def preprocessor_config(data: DataConfig) -> dict[str, Any]:
    """The preprocessor_config.json of an image model: its size and its normalisation."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": list(data.image_mean),
        "image_std": list(data.image_std),
        "size": {"height": data.image_size, "width": data.image_size},
    }
