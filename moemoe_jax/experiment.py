"""One experiment: every setting of a run, its defaults, and how the parts depend on each other.

`configs/*.py` start from `default_config()`; flags override it; `from_config_dict` builds the
frozen dataclasses that the package works with.
"""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_collections

from moemoe_jax.config_tree import from_mapping, nearest, to_config_dict
from moemoe_jax.data.config import DataConfig
from moemoe_jax.errors import UserError
from moemoe_jax.evaluation.table import EvalConfig
from moemoe_jax.files import read_json
from moemoe_jax.inference.buckets import padding_is_read
from moemoe_jax.inference.calibration import CalibrationConfig
from moemoe_jax.inference.config import AnswerConfig
from moemoe_jax.models.config import MoEMoEConfig, SourceSpec
from moemoe_jax.parallel.mesh import MeshConfig
from moemoe_jax.training.config import InitConfig, TrainConfig
from moemoe_jax.training.encoders import cache_of
from moemoe_jax.training.losses import LossConfig
from moemoe_jax.training.optimizer import OptimizerConfig

# What follows from `data` and the tokenizer is no setting of the model: nothing is said twice.
DERIVED = frozenset(
    {
        "model.sources",
        "model.text_length",
        "model.image_mean",
        "model.image_std",
        "model.text.vocab_size",
        "model.vision.image_size",
        "evaluation.no_answer_text",
    }
)

# Groups whose names are the user's own: they replace the default's.
BY_NAME = frozenset({"data.sources", "data.question_templates", "optimizer.rate_scale"})


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Every setting of a run, by topic."""

    model: MoEMoEConfig = MoEMoEConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    init: InitConfig = InitConfig()
    answer: AnswerConfig = AnswerConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvalConfig = EvalConfig()
    mesh: MeshConfig = MeshConfig()


def default_config() -> ml_collections.ConfigDict:
    """All settings with their defaults, for a config file to change."""
    return to_config_dict(ExperimentConfig(), DERIVED)


def from_config_dict(
    mapping: Mapping[str, Any] | ml_collections.ConfigDict, vocab_size: int | None = None
) -> ExperimentConfig:
    """Builds the settings.

    Args:
      mapping: a ConfigDict, or what `config.json` holds.
      vocab_size: of the tokenizer; None before there is one (the model's default stands in).

    Raises:
      UserError: for a key or a value that does not fit; see `config_tree.from_mapping`.
    """
    if isinstance(mapping, ml_collections.ConfigDict):
        mapping = mapping.to_dict()
    data = from_mapping(DataConfig, _without_idle_sources(mapping.get("data", {})), "data")
    model = dict(mapping.get("model", {}))
    for path in DERIVED:
        _refuse(mapping, path)
    model["text"] = {**model.get("text", {}), **_vocabulary(data, vocab_size)}
    vision = dict(model.get("vision", {}))
    if any(source.kind == "image" for source in data.sources):
        vision["image_size"] = data.image_size
    model["vision"] = vision
    built = from_mapping(
        MoEMoEConfig,
        model,
        "model",
        sources=tuple(SourceSpec(s.name, s.kind) for s in data.sources),
        text_length=data.text_length,
        image_mean=data.image_mean,
        image_std=data.image_std,
    )
    if not built.question_encoder and not data.context_includes_question:
        raise UserError(
            "without a question encoder the context must hold the question; "
            "set data.context_includes_question=True or model.question_encoder=True"
        )
    if data.text_buckets:
        _check_buckets(built)
    rest = {k: v for k, v in mapping.items() if k not in ("model", "data")}
    rest["evaluation"] = {**rest.get("evaluation", {}), "no_answer_text": data.no_answer_text}
    config = from_mapping(ExperimentConfig, rest, "", model=built, data=data)
    cache_of(config)  # refuses to keep encodings that change
    return config


def _without_idle_sources(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings without sources that read no field: so a flag takes one out of the model."""
    sources = data.get("sources")
    if not isinstance(sources, Mapping):
        return data
    idle = {n for n, s in sources.items() if isinstance(s, Mapping) and s.get("fields") in ((), [])}
    return {**data, "sources": {n: s for n, s in sources.items() if n not in idle}}


def _check_buckets(model: MoEMoEConfig) -> None:
    """Refuses to cut padding off that training reads: evaluation would read what it never saw."""
    reason = padding_is_read(model)
    if not reason and model.question_encoder and not model.alignment.mask_padding:
        reason = "model.alignment.mask_padding=False compares padding as well"
    if reason:
        raise UserError(
            f"data.text_buckets cuts padding off, but {reason}; leave it empty, or change the model"
            " (model.fusion.padding=zero hides padding)"
        )


def _vocabulary(data: DataConfig, pieces: int | None) -> dict[str, int]:
    """The model's vocabulary: as many rows as the settings ask for, or as there are pieces."""
    rows = data.vocab_rows
    if rows is not None and rows < (pieces or 1):
        raise UserError(
            f"data.vocab_rows is {rows}, but the tokenizer has {pieces or 'more'} pieces; give the "
            "model's own tokenizer, or at least as many rows"
        )
    rows = rows or pieces
    return {} if rows is None else {"vocab_size": rows}


def _refuse(mapping: Mapping[str, Any], path: str) -> None:
    node = mapping
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return
        node = node[part]
    raise UserError(f"{path} follows from data and the tokenizer; set it there, not in the model")


def read_settings(path: Path) -> ml_collections.ConfigDict:
    """The settings that a run left in `config.json`, or anyone wrote there.

    Raises:
      UserError: for a file that `read_json` refuses, or what `from_json` does, as of a version that
        knew other settings; names the file.
    """
    mapping = read_json(path.parent, path.name)
    try:
        return from_json(mapping)
    except UserError as error:
        raise UserError(
            f"{path}: {error} (change it there, or use the version of the code that wrote it)"
        ) from None


def from_json(mapping: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The settings that `config.json` keeps, for flags to change and to train with again.

    Raises:
      UserError: for a key that there is no more, or a value of another type.
    """
    config = default_config()
    _overlay(config, mapping, "")
    return config


def _overlay(config: ml_collections.ConfigDict, mapping: Mapping[str, Any], path: str) -> None:
    for key, value in mapping.items():
        where = f"{path}.{key}" if path else key
        if where in BY_NAME:
            if not isinstance(value, Mapping):
                raise UserError(f"{where} is {value!r}, but it is a group of settings")
            config[key] = ml_collections.ConfigDict(_tuples(value))
        elif key not in config:
            raise UserError(f"{where} does not exist{nearest(key, list(config))}")
        elif isinstance(config[key], ml_collections.ConfigDict):
            if not isinstance(value, Mapping):
                raise UserError(f"{where} is {value!r}, but it is a group of settings")
            _overlay(config[key], value, where)
        else:
            try:
                config[key] = _tuples(value)
            except (TypeError, ValueError) as error:
                raise UserError(f"{where} is {value!r}: {error}") from None


def _tuples(value: Any) -> Any:
    """What JSON made lists of, as the tuples that it was."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def to_json(config: ml_collections.ConfigDict) -> str:
    """The settings as `config.json` keeps them: sorted, so that equal settings are equal text."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True) + "\n"
