"""How a training runs the encoders: whether they are trained, drop out, and may be run just once.

With the experts alone trained, and those in the decoder, the encoders are frozen. What they give
is then a function of what a product says and of the question asked, unless something is drawn anew
at each step: dropout, or augmentation of the data. Where nothing is, it can be kept.
"""

import dataclasses
from typing import TYPE_CHECKING

from moemoe_jax.errors import UserError

if TYPE_CHECKING:
    from moemoe_jax.experiment import ExperimentConfig


@dataclasses.dataclass(frozen=True)
class Encoders:
    """How a step runs the encoders.

    Attributes:
      frozen: nothing is trained that encodings depend on.
      drop_out: whether they drop out (and noise their routers).
    """

    frozen: bool = False
    drop_out: bool = True


TRAINED = Encoders()


def encoders_of(config: "ExperimentConfig") -> Encoders:
    """How the steps of a run are to run the encoders."""
    frozen = not _trained(config)
    return Encoders(frozen, drop_out=config.train.frozen_dropout or not frozen)


def cache_of(config: "ExperimentConfig", repeats: bool = True) -> str:
    """Where encodings are kept: "none", "memory" or "disk".

    Args:
      config: the settings; "auto" is memory where keeping them is exact and of use.
      repeats: whether products come more than once.

    Raises:
      UserError: they are to be kept although something changes them; names every such setting.
    """
    wanted = config.train.cache_encodings
    if wanted == "none":
        return "none"
    changing = what_changes(config)
    if wanted == "auto":
        return "none" if changing or not repeats else "memory"
    if changing:
        raise UserError(
            f"train.cache_encodings={wanted} keeps what the encoders once gave, but these settings "
            f"change it from step to step: {', '.join(changing)}; change them, or set "
            "train.cache_encodings=auto, which then keeps nothing"
        )
    return wanted


def what_changes(config: "ExperimentConfig") -> list[str]:
    """The settings, as `name=value`, for which encodings differ from step to step."""
    return [*_trained(config), *_dropout(config), *_augmentation(config)]


def _trained(config: "ExperimentConfig") -> list[str]:
    if config.train.trainable != "experts":
        return [f"train.trainable={config.train.trainable}"]
    model = config.model
    stacks = [stack for stack, there in _text_encoders(config).items() if there]
    return [
        f"model.moe_layers.{stack}={getattr(model.moe_layers, stack)}"
        for stack in stacks
        if model.moe_layers.of(stack, model.text.num_layers)
    ]


def _text_encoders(config: "ExperimentConfig") -> dict[str, bool]:
    model = config.model
    return {"question_encoder": model.question_encoder, "context_encoder": model.has("text")}


def _dropout(config: "ExperimentConfig") -> list[str]:
    if not config.train.frozen_dropout:
        return []
    model, rates = config.model, {}
    if any(_text_encoders(config).values()):
        rates["model.text.dropout"] = model.text.dropout
    if model.has("image"):
        for name in ("dropout", "attention_dropout", "drop_path"):
            rates[f"model.vision.{name}"] = getattr(model.vision, name)
    on = [f"{name}={rate}" for name, rate in rates.items() if rate]
    return [f"train.frozen_dropout=True (with {', '.join(on)})"] if on else []


def _augmentation(config: "ExperimentConfig") -> list[str]:
    data = config.data
    plain = type(data.augment)()
    changed = [
        f"data.augment.{field.name}={getattr(data.augment, field.name)}"
        for field in dataclasses.fields(plain)
        if getattr(data.augment, field.name) != getattr(plain, field.name)
    ]
    changed += [
        f"data.sources.{source.name}.dropout={source.dropout}"
        for source in data.sources
        if source.dropout
    ]
    if data.context_includes_question:
        changed.append("data.context_includes_question=True")
    if data.text_buckets:  # a text's encoding is then as long as its batch asks
        changed.append(f"data.text_buckets={data.text_buckets}")
    return changed
