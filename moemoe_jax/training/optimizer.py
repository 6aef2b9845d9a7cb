"""The optimizer: a schedule, a clip, a rule, and a decay that spares what should not shrink.

The learning rate at step t is `learning_rate * warm(t) * max(decay(t), end_factor)`, where warm
climbs linearly over `warmup_steps`. The schedule of the MoEMoE paper is `step`: times 0.2 after
epochs 6 and 9 of 10.
"""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
import math
import re
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax
from optax import contrib

from moemoe_jax.errors import UserError
from moemoe_jax.parallel.sharding import path_name

OPTIMIZERS = ("adamw", "adam", "adafactor", "muon", "sgd")
SCHEDULES = ("constant", "cosine", "linear", "rsqrt", "step")

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Muon's quintic iteration
# Rank-two parameters that are spared: gains and tables are no matrices, and the small network that
# makes Swin V2's position bias is left alone as its authors do.
_NO_DECAY = re.compile(r"norm|relative|position|bias_mlp|logit_scale|(^|/)bias(/value)?$")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated.

    Attributes:
      name: adamw, adam (no decay), adafactor (factored second moments, steps scaled by the RMS of
        the parameter), muon (matrices move by their orthogonalised momentum, at Adam's usual RMS;
        all else by Adam) or sgd (with momentum `b1`).
      learning_rate: the peak.
      schedule: constant, cosine or linear (to `end_factor` at the last step), rsqrt
        (sqrt(warmup_steps / t)), or step (times `step_factor` after each of `step_epochs`).
      warmup_steps: steps of linear warm-up.
      step_epochs: epochs after which the step schedule drops, growing.
      step_factor: what the step schedule multiplies by.
      end_factor: floor of every schedule, as a fraction of `learning_rate`.
      weight_decay: decoupled, times the learning rate; norms, biases, relative-position tables
        and logit scales are spared, embeddings too unless `decay_embeddings`.
      decay_embeddings: whether token embeddings decay as well.
      b1: Adam's first-moment decay, and SGD's momentum; Adafactor has none.
      b2: Adam's second-moment decay.
      eps: Adam's.
      clip_norm: bound of the global norm of the trainable gradients; 0 means no clipping.
      rate_scale: factors on the learning rate of parts of the model, by the start of their
        parameters' names, e.g. {"gate": 0.1}; other parts take the rate as it is.
      ema_decay: of the moving average of the parameters; 0 means none is kept.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    step_epochs: tuple[int, ...] = (6, 9)
    step_factor: float = 0.2
    end_factor: float = 0.0
    weight_decay: float = 0.0
    decay_embeddings: bool = False
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    rate_scale: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    ema_decay: float = 0.0

    def __post_init__(self):
        _one_of("optimizer.name", self.name, OPTIMIZERS)
        _one_of("optimizer.schedule", self.schedule, SCHEDULES)
        object.__setattr__(self, "step_epochs", tuple(self.step_epochs))
        object.__setattr__(self, "rate_scale", dict(self.rate_scale))
        _check(self.learning_rate > 0, f"learning_rate {self.learning_rate} must be above 0")
        _check(self.warmup_steps >= 0, f"warmup_steps {self.warmup_steps} must be 0 or more")
        _check(self.clip_norm >= 0, f"clip_norm {self.clip_norm} must be 0 (off) or more")
        _check(self.weight_decay >= 0, f"weight_decay {self.weight_decay} must be 0 or more")
        _check(self.eps > 0, f"eps {self.eps} must be above 0")
        for part, factor in self.rate_scale.items():
            _check(factor >= 0, f"rate_scale[{part!r}] is {factor}; it must be 0 or more")
        for key in ("b1", "b2", "ema_decay"):
            _check(0 <= getattr(self, key) < 1, f"{key} {getattr(self, key)} must be in [0, 1)")
        for key in ("step_factor", "end_factor"):
            _check(0 <= getattr(self, key) <= 1, f"{key} {getattr(self, key)} must be in [0, 1]")
        growing = all(a < b for a, b in zip((0, *self.step_epochs), self.step_epochs, strict=False))
        _check(growing, f"step_epochs {self.step_epochs} must be whole epochs from 1 on, growing")
        if self.name == "adam" and self.weight_decay:
            raise UserError(
                "optimizer.weight_decay is set, but adam has none: set it to 0, or use adamw"
            )
        if self.schedule == "rsqrt" and not self.warmup_steps:
            raise UserError("optimizer.schedule rsqrt decays from the warm-up: set warmup_steps")


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key} is {value!r}: choose one of {', '.join(choices)}")


def _check(good: bool, text: str) -> None:
    if not good:
        raise UserError(f"optimizer.{text}")


def check_warmup(config: OptimizerConfig, total_steps: int) -> None:
    """Refuses a warm-up that is as long as the training.

    Raises:
      UserError: says how long it may be.
    """
    if config.warmup_steps >= total_steps:
        raise UserError(
            f"optimizer.warmup_steps {config.warmup_steps} must be below the {total_steps} steps "
            f"of the training: set it to {total_steps - 1} or less, or train longer"
        )


def make_schedule(config: OptimizerConfig, total_steps: int, steps_per_epoch: int) -> Callable:
    """Returns the learning rate as a function of the step (from 0), float32 [].

    Args:
      config: schedule, warm-up and floor.
      total_steps: where cosine and linear end.
      steps_per_epoch: turns `step_epochs` into steps.

    Raises:
      UserError: when there is no step to train, or the warm-up is as long as the training.
    """
    if total_steps < 1 or steps_per_epoch < 1:
        raise UserError(
            f"nothing to train: total_steps {total_steps}, steps_per_epoch {steps_per_epoch}"
        )
    check_warmup(config, total_steps)
    warmup = config.warmup_steps
    boundaries = jnp.array([epoch * steps_per_epoch for epoch in config.step_epochs], jnp.int32)

    def decay(step: jax.Array) -> jax.Array:
        progress = jnp.clip((step - warmup) / (total_steps - warmup), 0.0, 1.0)
        if config.schedule == "cosine":
            remaining = 0.5 * (1.0 + jnp.cos(math.pi * progress))
            return config.end_factor + (1.0 - config.end_factor) * remaining
        if config.schedule == "linear":
            return config.end_factor + (1.0 - config.end_factor) * (1.0 - progress)
        if config.schedule == "rsqrt":
            return jnp.sqrt(warmup / jnp.maximum(step + 1.0, warmup))
        if config.schedule == "step":
            return config.step_factor ** jnp.sum(step >= boundaries).astype(jnp.float32)
        return jnp.ones([], jnp.float32)

    def schedule(step: int | jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (step + 1.0) / warmup) if warmup else 1.0
        return config.learning_rate * warm * jnp.maximum(decay(step), config.end_factor)

    return schedule


def decay_mask(params: Any, decay_embeddings: bool = False) -> Any:
    """Returns a tree like `params` that is True where weight decay applies.

    Only matrices decay: at least two dimensions beside the stacking ones (`layers`, `expert`), so
    that the biases of stacked experts are spared like any bias.

    Args:
      params: an nnx.State of variables that carry `logical_axes`.
      decay_embeddings: whether tables that map ids to vectors (first axis `vocab`) decay.
    """

    def decays(path: tuple[Any, ...], variable: nnx.Variable) -> bool:
        axes = [a for a in variable.get_metadata()["logical_axes"] if a not in ("layers", "expert")]
        if len(axes) < 2 or _NO_DECAY.search(path_name(path)):
            return False
        return axes[0] != "vocab" or decay_embeddings

    leaves = jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    return jax.tree.unflatten(jax.tree.structure(params), [decays(*leaf) for leaf in leaves])


def _muon_dimensions(params: Any) -> Any:
    """A tree like `params`: (in, out) of each matrix that Muon orthogonalises, None elsewhere.

    Stacked matrices (`layers`, `expert`) are taken one by one. Tables of tokens, heads over the
    vocabulary and convolutions are left to Adam.
    """

    def of(decays: bool, variable: nnx.Variable) -> contrib.MuonDimensionNumbers | None:
        axes = [a for a in variable.get_metadata()["logical_axes"] if a not in ("layers", "expert")]
        matrix = decays and len(axes) == 2 and "vocab" not in axes
        return contrib.MuonDimensionNumbers(-2, -1) if matrix else None

    variables = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, nnx.Variable))
    decaying = jax.tree.leaves(decay_mask(params))
    found = [of(*pair) for pair in zip(decaying, variables, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), found)


def _muon(config: OptimizerConfig, params: Any) -> optax.GradientTransformation:
    dimensions = _muon_dimensions(params)
    rule = contrib.muon(
        1.0,
        # One row per iteration makes optax loop; a single row, the default, is unrolled for every
        # matrix, which is most of what a small model's step has to compile.
        ns_coeffs=(_NEWTON_SCHULZ,) * 5,
        consistent_rms=0.2,
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
        muon_weight_dimension_numbers=lambda _: dimensions,
    )
    return optax.chain(rule, optax.scale(-1.0))  # sign and rate are `make_optimizer`'s


def _rule(config: OptimizerConfig, params: Any) -> optax.GradientTransformation:
    if config.name in ("adamw", "adam"):
        return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.name == "muon":
        return _muon(config, params)
    if config.name == "sgd":
        return optax.trace(decay=config.b1) if config.b1 else optax.identity()
    # Adafactor (arXiv 1804.04235) in the order of its Algorithm 4, without momentum.
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )


def _scale_parts(scales: Mapping[str, float], params: Any) -> optax.GradientTransformation:
    """Multiplies the steps of the parts that `rate_scale` names.

    Raises:
      UserError: for a name that no trained parameter starts with.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    parts = {part: re.compile(rf"{re.escape(part)}(/|$)") for part in scales}
    for part, pattern in parts.items():
        if scales[part] != 1 and not any(map(pattern.match, names)):
            known = sorted({name.partition("/")[0] for name in names})
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise UserError(
                f"optimizer.rate_scale names {part!r}, which is not trained{hint}; "
                f"--config.optimizer.rate_scale.{part}=1 takes it out"
            )
    # The longest name that fits counts: "decoder" may differ from the rest of the model, and
    # "decoder/stack" from the rest of the decoder.
    longest = sorted(parts, key=len, reverse=True)
    factors = [next((scales[p] for p in longest if parts[p].match(n)), 1.0) for n in names]
    tree = jax.tree.unflatten(jax.tree.structure(params), factors)
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, tree))


def make_optimizer(
    config: OptimizerConfig, params: Any, total_steps: int, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, Callable]:
    """Builds the optimizer of the trainable parameters.

    Args:
      config: which rule, schedule, clip and decay.
      params: nnx.State of the trainable parameters alone (arrays or ShapeDtypeStructs).
      total_steps: updates in the whole training.
      steps_per_epoch: updates in an epoch.

    Returns:
      The transformation, and the schedule that it follows (for logging).

    Raises:
      UserError: see `make_schedule` and `_scale_parts`.
    """
    schedule = make_schedule(config, total_steps, steps_per_epoch)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(_rule(config, params))
    if config.weight_decay:
        mask = decay_mask(params, config.decay_embeddings)
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=mask))
    if config.rate_scale:
        parts.append(_scale_parts(config.rate_scale, params))
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts), schedule


def ema_update(ema: Any, params: Any, decay: float, step: int | jax.Array) -> Any:
    """Moves the average towards the parameters: `d * ema + (1 - d) * params`.

    Args:
      ema: the average so far, a tree like `params`.
      params: the parameters after the update of `step`.
      decay: the final decay; it warms up as d = min(decay, (1 + step) / (10 + step)), so that the
        first averages do not cling to the initial values.
      step: from 0.
    """
    step = jnp.asarray(step, jnp.float32)
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: (d * e + (1.0 - d) * p).astype(e.dtype), ema, params)
