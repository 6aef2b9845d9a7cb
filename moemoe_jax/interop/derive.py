"""The settings that follow from the files of a text model and an image model."""

from collections.abc import Iterable
from typing import Any

import ml_collections

from moemoe_jax.errors import UserError
from moemoe_jax.interop.text_config import TextModel
from moemoe_jax.interop.vision_config import Normalisation
from moemoe_jax.nn.swinv2 import SwinV2Config

# What a file decides. Dropout, dtypes and how layers are stored belong to the training.
TEXT = (
    "d_model",
    "d_kv",
    "d_ff",
    "num_heads",
    "num_layers",
    "num_decoder_layers",
    "activation",
    "tie_word_embeddings",
    "scale_logits",
    "relative_buckets",
    "relative_max_distance",
    "per_layer_bias",
    "epsilon",
)
VISION = (
    "patch_size",
    "embed_dim",
    "depths",
    "heads",
    "window_size",
    "pretrained_window_sizes",
    "mlp_ratio",
    "qkv_bias",
    "epsilon",
)
MIXTURE = ("num_experts", "top_k", "gate", "noise", "routing_level")


def from_text(found: TextModel) -> dict[str, Any]:
    """Settings by path, as a text model's files have them.

    A file with mixtures decides on all that the mixtures are and where they stand: its routers and
    experts fit nothing else.
    """
    config = found.config
    values = {f"model.text.{name}": getattr(config.text, name) for name in TEXT}
    values["data.vocab_rows"] = config.text.vocab_size
    if config.encoder_moe or config.decoder_moe:
        values |= {f"model.moe.{name}": getattr(config.moe, name) for name in MIXTURE}
        encoder, decoder = _layers(config.encoder_moe), _layers(config.decoder_moe)
        values["model.moe_layers.question_encoder"] = encoder
        values["model.moe_layers.context_encoder"] = encoder
        values["model.moe_layers.decoder"] = decoder
    return values


def _layers(layers: Iterable[int]) -> str:
    return ",".join(map(str, layers)) or "none"


def from_vision(config: SwinV2Config, normalisation: Normalisation | None) -> dict[str, Any]:
    """Settings by path, as an image model's files have them."""
    values = {f"model.vision.{name}": getattr(config, name) for name in VISION}
    values["data.image_size"] = config.image_size
    if normalisation is not None:
        values["data.image_mean"] = normalisation.mean
        values["data.image_std"] = normalisation.std
    return values


def apply(config: ml_collections.ConfigDict, values: dict[str, Any]) -> list[str]:
    """Sets values by path, in place; returns a line for each that was another before.

    Raises:
      UserError: the config lacks the place of a value.
    """
    lines = []
    for path, value in values.items():
        *groups, last = path.split(".")
        node = config
        for group in groups:
            if group not in node:
                raise UserError(f"--config has no settings {group}, where {path} belongs")
            node = node[group]
        if node[last] != value:
            lines.append(f"{path}: {value} (the config had {node[last]})")
        node[last] = value
    return lines
