import dataclasses
import types

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.params import ExpertParam, RouterParam
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from moemoe_jax.training.losses import LossConfig
from moemoe_jax.training.step import init_state, make_train_step, split_products
from moemoe_jax.training.trainable import split_trainable
from tests.models.tiny import MIXTURE, batch, random_model

BATCH = batch(MIXTURE, products=8, questions=2)
ONE = make_mesh(MeshConfig(), jax.devices()[:1])
SGD = optax.sgd(0.5)
CROSS_ENTROPY = LossConfig(align_weight=0.0, aux_weight=0.0)


def trainer(
    config=MIXTURE,
    optimizer=SGD,
    loss=None,
    trainable="all",
    ema=0.0,
    **options,
):
    """A compiled step, the state before it and the frozen parameters."""
    graph, trained, frozen = split_trainable(random_model(config), trainable)
    step = make_train_step(
        graph,
        optimizer,
        lambda step: jnp.asarray(step, jnp.float32),
        loss or LossConfig(),
        ema_decay=ema,
        **{"seed": 0, "mesh": ONE} | options,
    )
    return types.SimpleNamespace(
        step=jax.jit(step),
        state=init_state(trained, optimizer, bool(ema)),
        frozen=frozen,
        graph=graph,
    )


def moved(run, batch=BATCH):
    """The change of each parameter, -0.5 times its gradient with SGD, and the metrics."""
    state, metrics = run.step(run.state, run.frozen, batch)
    return jax.tree.map(jnp.subtract, state.params, run.state.params), metrics


# --- accumulation ---------------------------------------------------------------------------------


def test_micro_batches_weigh_every_token_alike():
    tokens = (BATCH["answer_ids"] != 0).sum(axis=(1, 2))
    assert len(set(tokens[:4] + tokens[4:])) > 1
    assert tokens[:4].sum() != tokens[4:].sum()  # micro-batches of different length
    whole, metrics = moved(trainer(loss=CROSS_ENTROPY))
    cut, cut_metrics = moved(trainer(loss=CROSS_ENTROPY, accumulation=2))
    chex.assert_trees_all_close(cut, whole, atol=1e-5)
    for name in ("loss/total", "loss/cross_entropy", "optimizer/gradient_norm"):
        chex.assert_trees_all_close(cut_metrics[name], metrics[name], rtol=1e-5)
    # Nothing but the alignment, which this loss leaves out, stays where it was.
    still = {
        path[0] for path, leaf in nnx.to_flat_state(whole) if not np.any(np.asarray(leaf[...]))
    }
    assert still == {"alignment"}


def test_a_batch_is_cut_along_its_products_and_the_questions_are_shared():
    parts = split_products(BATCH, 4)
    ids = BATCH["question_ids"]
    chex.assert_trees_all_equal(parts["question_ids"], jnp.broadcast_to(ids, (4, *ids.shape)))
    chex.assert_trees_all_equal(parts["answer_ids"][1], BATCH["answer_ids"][2:4])
    chex.assert_trees_all_equal(parts["sources"]["title"][3], BATCH["sources"]["title"][6:])
    assert parts["source_valid"]["title"].shape == (4, 2)


# --- randomness, the moving average, bad steps ----------------------------------------------------


DROPPING = dataclasses.replace(MIXTURE, text=dataclasses.replace(MIXTURE.text, dropout=0.2))


@pytest.fixture(scope="module")
def noisy():
    return trainer(DROPPING, optax.adam(1e-2), ema=0.9)


def test_a_step_is_a_function_of_seed_and_step(noisy):
    first, again = (noisy.step(noisy.state, noisy.frozen, BATCH) for _ in range(2))
    chex.assert_trees_all_equal(first, again)
    later = noisy.state.replace(step=jnp.int32(7))
    _, other_step = noisy.step(later, noisy.frozen, BATCH)
    other = trainer(DROPPING, optax.adam(1e-2), ema=0.9, seed=1)
    _, other_seed = other.step(other.state, other.frozen, BATCH)
    losses = {float(m["loss/total"]) for m in (first[1], other_step, other_seed)}
    assert len(losses) == 3


def test_the_average_follows_the_parameters(noisy):
    before = noisy.state
    chex.assert_trees_all_equal(before.ema, before.params)
    after, _ = noisy.step(before, noisy.frozen, BATCH)
    # At step 0 the decay is (1 + 0) / (10 + 0).
    expected = jax.tree.map(lambda e, p: 0.1 * e + 0.9 * p, before.ema, after.params)
    chex.assert_trees_all_close(after.ema, expected, atol=1e-6)
    assert int(after.step) == 1
    long_run = before.replace(step=jnp.int32(1000))
    after, _ = noisy.step(long_run, noisy.frozen, BATCH)
    expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, before.ema, after.params)
    chex.assert_trees_all_close(after.ema, expected, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(noisy):
    healthy, _ = noisy.step(noisy.state, noisy.frozen, BATCH)
    model = nnx.merge(noisy.graph, jax.tree.map(jnp.copy, healthy.params), noisy.frozen)
    model.decoder_embedding.table[...] = model.decoder_embedding.table[...].at[0, 0].set(jnp.nan)
    ill = healthy.replace(params=split_trainable(model, "all")[1])
    state = ill
    for count in (1, 2):
        state, metrics = noisy.step(state, noisy.frozen, BATCH)
        assert int(state.skipped) == int(state.skipped_in_a_row) == count
        assert int(metrics["train/skipped"]) == int(metrics["train/skipped_in_a_row"]) == count
        assert not np.isfinite(metrics["loss/total"])
        assert int(state.step) == 1 + count
        kept = (state.params, state.ema, state.optimizer)
        chex.assert_trees_all_equal(kept, (ill.params, ill.ema, ill.optimizer))
    # Well again: the row of bad steps ends, and the schedule has not moved on during them.
    state, metrics = noisy.step(state.replace(params=healthy.params), noisy.frozen, BATCH)
    assert (int(state.skipped), int(state.skipped_in_a_row), int(state.step)) == (2, 0, 4)
    assert float(metrics["optimizer/learning_rate"]) == 1.0
    assert np.isfinite(metrics["loss/total"])
    moved = jax.tree.map(lambda a, b: jnp.any(a != b), state.params, healthy.params)
    assert all(jax.tree.leaves(moved))


# --- experts only ---------------------------------------------------------------------------------


# One expert a token, whose weight is then always one: no other loss reaches the router.
ONE_EXPERT = dataclasses.replace(MIXTURE, moe=MoEConfig(num_experts=4, top_k=1))


def test_training_experts_moves_them_alone_and_the_auxiliary_loss_moves_the_router():
    run = trainer(ONE_EXPERT, optax.adam(1e-2), trainable="experts")
    kinds = [type(v) for _, v in nnx.to_flat_state(run.state.params)]
    assert set(kinds) == {ExpertParam, RouterParam}
    moments = [leaf for leaf in jax.tree.leaves(run.state.optimizer) if leaf.ndim]
    assert len(moments) == 2 * len(kinds)
    whole = random_model(ONE_EXPERT)
    state, metrics = run.step(run.state, run.frozen, BATCH)
    after = nnx.to_flat_state(nnx.state(nnx.merge(run.graph, state.params, run.frozen)))
    for (path, new), (_, old) in zip(after, nnx.to_flat_state(nnx.state(whole)), strict=True):
        trained = isinstance(new, ExpertParam | RouterParam)
        assert bool(jnp.any(new[...] != old[...])) == trained, path

    sgd = trainer(ONE_EXPERT, SGD, LossConfig(aux_weight=0.3), trainable="experts")
    changes, _ = moved(sgd)
    graph, routers, rest = nnx.split(whole, RouterParam, ...)
    auxiliary = lambda r: nnx.merge(graph, r, rest)(BATCH).moe["decoder/1"].aux_loss  # noqa: E731
    gradient = jax.jit(jax.grad(auxiliary))(routers)
    kernel = gradient.decoder.stack.blocks[1].feed_forward.router.kernel[...]
    assert jnp.max(jnp.abs(kernel)) > 1e-3
    change = changes.decoder.stack.blocks[1].feed_forward.router.kernel[...]
    chex.assert_trees_all_close(change, -0.5 * 0.3 * kernel, atol=1e-6)
    assert metrics["loss/aux"] > 0
