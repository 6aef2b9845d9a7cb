"""The training objective: L = CE + λ_align · (L_QCA + L_QIA) + λ_aux · Σ L_aux, eqs 8 and 10.

Shapes: P products, Q questions per product, L answer tokens, S sources.
"""

import dataclasses

import jax
import jax.numpy as jnp

from moemoe_jax.models.outputs import Outputs
from moemoe_jax.training.vocabulary_loss import vocabulary_loss


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the objective's terms.

    Attributes:
      align_weight: λ of each alignment loss; 0 is the paper's WoAL.
      aux_weight: λ of the load-balancing loss, the paper's 0.1.
      z_weight: of the router's z-loss.
      aux_reduce: "sum" or "mean" over the mixture layers.
      label_smoothing: share of the target's probability spread over the vocabulary.
    """

    align_weight: float = 1.0
    aux_weight: float = 0.1
    z_weight: float = 0.0
    aux_reduce: str = "sum"
    label_smoothing: float = 0.0

    def __post_init__(self):
        for name in ("align_weight", "aux_weight", "z_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name} is {getattr(self, name)}; it must be 0 or more")
        if self.aux_reduce not in ("sum", "mean"):
            raise ValueError(f"loss.aux_reduce is {self.aux_reduce!r}; use sum or mean")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"loss.label_smoothing is {self.label_smoothing}; use 0 to below 1")


def objective(
    outputs: Outputs, batch: dict, config: LossConfig, tokens: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of one (micro-)batch and what training logs of it.

    Args:
      outputs: of the forward pass.
      batch: the (micro-)batch; see `data.batching.collate`.
      config: the weights.
      tokens: float32 scalar, the answer tokens that the cross-entropy is a mean over: those of one
        micro-batch on average, so that accumulated micro-batches of uneven length weigh every
        token alike.

    Returns:
      the loss (float32 scalar) and scalars (vectors, for expert loads) by name.
    """
    targets = batch["answer_ids"]
    valid = (targets != 0) & batch["question_valid"][..., None]
    products = targets.shape[0]
    cross_entropy, best = vocabulary_loss(
        outputs.hidden.reshape(products, -1, outputs.hidden.shape[-1]),
        outputs.vocabulary,
        targets.reshape(products, -1),
        (valid / jnp.maximum(tokens, 1.0)).reshape(products, -1),
        config.label_smoothing,
    )
    right = (best.reshape(targets.shape) == targets) | ~valid
    asked = batch["question_valid"].astype(jnp.float32)
    exact = jnp.sum(jnp.all(right, axis=-1) * asked) / jnp.maximum(jnp.sum(asked), 1.0)
    metrics = {"loss/cross_entropy": cross_entropy, "train/teacher_forced_accuracy": exact}

    total = cross_entropy
    if outputs.alignment.shape[0]:
        total += config.align_weight * jnp.sum(outputs.alignment)
    if outputs.moe:
        layers = list(outputs.moe.values())
        scale = 1.0 / len(layers) if config.aux_reduce == "mean" else 1.0
        aux = scale * sum(layer.aux_loss for layer in layers)
        z = scale * sum(layer.z_loss for layer in layers)
        total += config.aux_weight * aux + config.z_weight * z
        metrics |= {"loss/aux": aux, "loss/router_z": z}
    metrics["loss/total"] = total
    return total, metrics | _statistics(outputs, batch)


def _statistics(outputs: Outputs, batch: dict) -> dict[str, jax.Array]:
    """What is logged beside the losses: source weights, alignment and router statistics."""
    asked = batch["question_valid"].astype(jnp.float32)
    mean_weights = jnp.sum(outputs.source_weights * asked[..., None], axis=(0, 1))
    stats = {"source_weights": mean_weights / jnp.maximum(jnp.sum(asked), 1.0)}
    if outputs.alignment.shape[0]:
        stats["loss/align"] = outputs.alignment
        stats["align_variance_of_questions"] = outputs.alignment_variance[0]
        stats["align_variance"] = outputs.alignment_variance[1:]
    for name, layer in outputs.moe.items():
        stats[f"moe/{name}/aux_loss"] = layer.aux_loss
        stats[f"moe/{name}/load"] = layer.load
        stats[f"moe/{name}/dropped"] = layer.dropped
        stats[f"moe/{name}/entropy"] = layer.entropy
    return stats
