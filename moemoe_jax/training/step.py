"""One training step as a pure function of (state, batch), and nothing else.

Only the trainable part of the model is differentiated: frozen parameters have no gradient and no
optimizer state. Randomness is derived from (seed, step), so a resumed run continues bit for bit.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx, struct
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
import optax

from moemoe_jax.nn import rng
from moemoe_jax.parallel.axes import constrain, using
from moemoe_jax.parallel.sharding import SHARED
from moemoe_jax.training.encoders import TRAINED, Encoders
from moemoe_jax.training.losses import LossConfig, objective
from moemoe_jax.training.optimizer import ema_update

Tree = Any


@struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32 scalar, steps done, skipped ones included.
      params: the trainable parameters.
      ema: their moving average, or None.
      optimizer: the optimizer's state, for `params` only.
      skipped: int32 scalar, steps skipped because the loss or a gradient was not finite.
      skipped_in_a_row: int32 scalar.
    """

    step: jax.Array
    params: Tree
    ema: Tree | None
    optimizer: Tree
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def init_state(params: Tree, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """The state before the first step."""
    # Distinct arrays for distinct leaves: the step donates them.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        optimizer=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    loss: LossConfig,
    *,
    mesh: Mesh | AbstractMesh,
    seed: int,
    encoders: Encoders = TRAINED,
    accumulation: int = 1,
    ema_decay: float = 0.0,
) -> Callable[[TrainState, Tree, dict], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds `step(state, frozen, batch) -> (state, metrics)`, to be jitted by the caller.

    Args:
      graph: of `nnx.split(model, trainable, ...)`.
      optimizer: updates the trainable parameters.
      schedule: step → learning rate, for the log; the optimizer has its own copy.
      loss: weights of the objective.
      mesh: that the step is for; it decides where activations lie and how tokens reach experts.
      seed: of dropout, router noise and the like.
      encoders: how the encoders are run; not at all for a batch that has `encoded_questions` and
        `encoded_sources`, what they once gave, in place of `question_ids` and `sources`.
      accumulation: micro-batches a batch is cut into along its products; they are run one after the
        other and their gradients added. Batch statistics (auxiliary loss, alignment) are then those
        of a micro-batch.
      ema_decay: of the parameters' moving average, 0 for none.
    """

    def loss_of(params: Tree, frozen: Tree, batch: dict, key: jax.Array, tokens: jax.Array):
        model = nnx.merge(graph, params, frozen)
        keys = rng.split(key, 2)
        if "encoded_sources" in batch:
            encoded = batch["encoded_questions"], batch["encoded_sources"], {}
        else:
            encoded = model.encode(batch, keys[0] if encoders.drop_out else None)
        # The encodings alone decide the alignment: without anything trained in them, a constant.
        outputs = model.read_encoded(batch, encoded, keys[1], align=not encoders.frozen)
        return objective(outputs, batch, loss, tokens)

    def gradients(params: Tree, frozen: Tree, batch: dict, key: jax.Array):
        valid = (batch["answer_ids"] != 0) & batch["question_valid"][..., None]
        tokens = jnp.sum(valid).astype(jnp.float32) / accumulation
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        if accumulation == 1:
            (_, metrics), grads = differentiate(params, frozen, batch, key, tokens)
            return grads, metrics

        def add(total, part):
            micro, index = part
            (_, metrics), grads = differentiate(
                params, frozen, micro, jax.random.fold_in(key, index), tokens
            )
            return jax.tree.map(jnp.add, total, (grads, metrics)), None

        micros = split_products(batch, accumulation)
        first = jax.tree.map(lambda x: x[0], micros)
        shapes = jax.eval_shape(differentiate, params, frozen, first, key, tokens)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[1], shapes[0][1]))
        total, _ = jax.lax.scan(add, zeros, (micros, jnp.arange(accumulation)))
        return jax.tree.map(lambda x: x / accumulation, total)

    def step(state: TrainState, frozen: Tree, batch: dict):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        with using(mesh):
            grads, metrics = gradients(state.params, frozen, batch, key)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss/total"])

        def update():
            updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            ema = state.ema
            if ema is not None:
                ema = ema_update(ema, params, ema_decay, state.step)
            return params, ema, optimizer_state

        params, ema, optimizer_state = jax.lax.cond(
            finite, update, lambda: (state.params, state.ema, state.optimizer)
        )
        bad = 1 - finite.astype(jnp.int32)
        new = TrainState(
            step=state.step + 1,
            params=params,
            ema=ema,
            optimizer=optimizer_state,
            skipped=state.skipped + bad,
            skipped_in_a_row=(state.skipped_in_a_row + bad) * bad,
        )
        metrics |= {
            "optimizer/learning_rate": schedule(state.step - state.skipped),
            "optimizer/gradient_norm": norm,
            "train/skipped": new.skipped,
            "train/skipped_in_a_row": new.skipped_in_a_row,
        }
        return new, metrics

    return step


def split_products(batch: dict, parts: int) -> dict:
    """Cuts a batch into `parts` micro-batches: a new leading axis on what is per product.

    The table of distinct questions is shared: it is repeated, not cut.
    """
    shared = {k: v for k, v in batch.items() if k in SHARED}
    products = {k: v for k, v in batch.items() if k not in SHARED}

    def cut_up(x: jax.Array) -> jax.Array:
        x = x.reshape(parts, x.shape[0] // parts, *x.shape[1:])
        return constrain(x, None, "batch")

    cut = jax.tree.map(cut_up, products)
    repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (parts, *x.shape)), shared)
    return cut | repeated
