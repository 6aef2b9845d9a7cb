"""What image model a folder holds: a SwinV2 of any size, and how its images are prepared.

An image is scaled to the model's size and normalised as preprocessor_config.json says. It is padded
to a square first, where transformers stretches it: a product must not change its shape.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from moemoe_jax.errors import UserError
from moemoe_jax.interop.settings import Settings
from moemoe_jax.interop.weights import Weights, find_file, read_json
from moemoe_jax.nn.swinv2 import SwinV2Config

PREPROCESSOR = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the channels of pixels in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def vision_config(weights: Weights) -> SwinV2Config:
    """Reads the shape of a SwinV2 from a folder's config.json.

    Raises:
      UserError: it is none, or has a setting that is not implemented; names file and setting.
    """
    settings = Settings(Path(weights.folder) / "config.json", weights.config)
    settings.one_of("model_type", ("swinv2",), "no type at all")
    settings.fixed(hidden_act="gelu", use_absolute_embeddings=False, num_channels=3)
    if "quantization_config" in weights.config:
        settings.refuse("quantization_config", "quantised weights are not read")
    depths = settings.integers("depths", (2, 2, 6, 2))
    # transformers writes four where nothing is set, and reads as many as there are stages.
    sizes = settings.integers("pretrained_window_sizes", (0,) * len(depths), least=0)[: len(depths)]
    try:
        return SwinV2Config(
            image_size=settings.side("image_size", 224),
            patch_size=settings.side("patch_size", 4),
            embed_dim=settings.integer("embed_dim", 96),
            depths=depths,
            heads=settings.integers("num_heads", (3, 6, 12, 24)),
            window_size=settings.side("window_size", 7),
            pretrained_window_sizes=sizes,
            mlp_ratio=settings.number("mlp_ratio", 4.0),
            qkv_bias=settings.flag("qkv_bias", True),
            drop_path=settings.number("drop_path_rate", 0.1),
            dropout=settings.number("hidden_dropout_prob", 0.0),
            attention_dropout=settings.number("attention_probs_dropout_prob", 0.0),
            epsilon=settings.number("layer_norm_eps", 1e-5),
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{settings.path}: {error}") from None


def normalisation(folder: Path, image_size: int) -> Normalisation | None:
    """How a folder's images are normalised; None where it does not say.

    Raises:
      UserError: the file asks for something else than the model gets.
    """
    if find_file(folder, PREPROCESSOR) is None:
        return None
    settings = Settings(Path(folder) / PREPROCESSOR, read_json(folder, PREPROCESSOR))
    settings.fixed(do_resize=True, do_rescale=True)
    if settings.values.get("do_center_crop"):
        settings.refuse("do_center_crop", "images are not cropped")
    if abs(settings.number("rescale_factor", 1 / 255) * 255 - 1) > 1e-4:
        settings.refuse("rescale_factor", "pixels are scaled by 1/255")
    size = _side(settings.values.get("size", image_size))
    if size != image_size:
        settings.refuse("size", f"the model's images have {image_size} pixels a side")
    if not settings.flag("do_normalize", True):
        return Normalisation((0.0,) * 3, (1.0,) * 3)
    mean, std = (_channels(settings, key) for key in ("image_mean", "image_std"))
    if min(std) <= 0:
        settings.refuse("image_std", "it must be positive")
    return Normalisation(mean, std)


def _side(size: Any) -> Any:
    """The side of the square that a size stands for; anything else comes back as it is."""
    if isinstance(size, dict) and len(sides := set(map(repr, size.values()))) == 1 and sides:
        return next(iter(size.values()))
    return size


def _channels(settings: Settings, key: str) -> tuple[float, ...]:
    value = settings.values.get(key)
    numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    if not numbers or len(value) != 3 or not all(map(math.isfinite, value)):
        settings.refuse(key, "it must be a list of three numbers")
    return tuple(map(float, value))
