import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.nn.params import ExpertParam, param
from moemoe_jax.training.optimizer import (
    OptimizerConfig,
    decay_mask,
    ema_update,
    make_optimizer,
    make_schedule,
)

ones = nnx.initializers.ones


class Toy(nnx.Module):
    def __init__(self, rngs):
        self.kernel = param(rngs, (3, 4), ones, ("embed", "mlp"))
        self.bias = param(rngs, (4,), ones, ("mlp",))
        self.embedding = param(rngs, (6, 3), ones, ("vocab", "embed"))
        self.head = param(rngs, (3, 6), ones, ("embed", "vocab"))
        self.layer_norm = param(rngs, (2, 3), ones, ("layers", "embed"))
        self.relative_bias = param(rngs, (8, 2), ones, (None, "heads"))
        self.bias_mlp = param(rngs, (2, 5), ones, (None, None))
        self.logit_scale = param(rngs, (2, 1, 1), ones, ("heads", None, None))
        self.experts = param(rngs, (2, 3, 4), ones, ("expert", "embed", "mlp"), kind=ExpertParam)
        self.expert_bias = param(rngs, (2, 4), ones, ("expert", "mlp"), kind=ExpertParam)


def params():
    return nnx.state(Toy(nnx.Rngs(0)))


def test_the_papers_step_schedule():
    # Epochs of 10 steps: times 0.2 after epoch 6 (step 60) and after epoch 9 (step 90).
    schedule = make_schedule(OptimizerConfig(learning_rate=1e-3, schedule="step"), 100, 10)
    rates = [float(schedule(step)) for step in (0, 59, 60, 89, 90, 99)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 2e-4, 2e-4, 4e-5, 4e-5], rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Warm-up of 4 steps: 1/4, 2/4, 3/4, 4/4 of 0.8; steps 8 and 12 are half-way and the end.
        ("constant", [0.2, 0.8, 0.8, 0.8]),
        ("cosine", [0.2, 0.8, 0.44, 0.08]),  # half-way 0.1 + 0.9 / 2 = 0.55 of 0.8
        ("linear", [0.2, 0.8, 0.44, 0.08]),
        ("rsqrt", [0.2, 0.8, 0.8 * (4 / 9) ** 0.5, 0.8 * (4 / 13) ** 0.5]),
    ],
)
def test_schedules_by_hand(schedule, expected):
    config = OptimizerConfig(learning_rate=0.8, schedule=schedule, warmup_steps=4, end_factor=0.1)
    made = jax.jit(make_schedule(config, 12, 1))
    np.testing.assert_allclose([made(t) for t in (0, 3, 8, 12)], expected, rtol=1e-5)


def test_end_factor_is_a_floor():
    config = OptimizerConfig(
        learning_rate=1.0, schedule="step", step_epochs=(1, 2), step_factor=0.1, end_factor=0.05
    )
    made = make_schedule(config, 3, 1)
    np.testing.assert_allclose([made(t) for t in range(3)], [1.0, 0.1, 0.05], rtol=1e-6)


def test_what_decays():
    mask = decay_mask(params())
    decaying = {name for name in mask if mask[name].get_value()}
    assert decaying == {"kernel", "head", "experts"}
    mask = decay_mask(params(), decay_embeddings=True)
    assert mask["embedding"].get_value()


def test_decay_shrinks_matrices_alone():
    # With zero gradients AdamW moves by -lr * decay * w: from 1 to 1 - 0.1 * 0.5 = 0.95.
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    start = params()
    optimizer, _ = make_optimizer(config, start, 10, 1)
    zeros = jax.tree.map(jnp.zeros_like, start)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(start), start)
    after = optax.apply_updates(start, updates)
    np.testing.assert_allclose(after["kernel"][...], 0.95, rtol=1e-6)
    np.testing.assert_allclose(after["experts"][...], 0.95, rtol=1e-6)
    for name in ("bias", "embedding", "layer_norm", "relative_bias", "logit_scale", "expert_bias"):
        np.testing.assert_array_equal(after[name][...], 1.0)


def test_clipping_is_by_the_global_norm():
    # Plain SGD, gradients 3 and 4 in two leaves: norm 5, clipped to 1 they are 0.6 and 0.8.
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.a = param(rngs, (1,), nnx.initializers.zeros, (None,))
            self.b = param(rngs, (1,), nnx.initializers.zeros, (None,))

    start = nnx.state(Two(nnx.Rngs(0)))
    gradient = nnx.clone(start)
    gradient["a"][...], gradient["b"][...] = jnp.array([3.0]), jnp.array([4.0])
    for clip, expected in ((1.0, (-0.6, -0.8)), (0.0, (-3.0, -4.0))):
        config = OptimizerConfig(name="sgd", learning_rate=1.0, b1=0.0, clip_norm=clip)
        optimizer, _ = make_optimizer(config, start, 10, 1)
        updates, _ = optimizer.update(gradient, optimizer.init(start), start)
        np.testing.assert_allclose([updates["a"][0], updates["b"][0]], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adam", "adafactor", "muon", "sgd"])
def test_every_rule_descends(name):
    config = OptimizerConfig(
        name=name, learning_rate=0.05, weight_decay=0.0 if name == "adam" else 0.01, clip_norm=0.0
    )
    state = params()
    optimizer, _ = make_optimizer(config, state, 50, 1)

    def loss(state):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(state))

    @jax.jit
    def step(state, moments):
        updates, moments = optimizer.update(jax.grad(loss)(state), moments, state)
        return optax.apply_updates(state, updates), moments

    first, moments = loss(state), optimizer.init(state)
    for _ in range(5):
        state, moments = step(state, moments)
    assert loss(state) < 0.9 * first


def test_adam_moves_as_optax_adam_moves():
    state = params()
    ours, _ = make_optimizer(
        OptimizerConfig(name="adam", learning_rate=0.1, clip_norm=0.0), state, 10, 1
    )
    theirs = optax.adam(0.1)
    gradient = jax.tree.map(lambda x: 0.3 * x, state)
    chex.assert_trees_all_close(
        ours.update(gradient, ours.init(state), state)[0],
        theirs.update(gradient, theirs.init(state), state)[0],
        rtol=1e-6,
    )


def test_average_by_hand():
    # Step 0: d = min(0.9, 1/10) = 0.1, so 0.1 * 0 + 0.9 * 10 = 9. Late: d = 0.9, 0.9 * 9 + 1 = 9.1.
    average = ema_update({"w": jnp.zeros(1)}, {"w": jnp.full(1, 10.0)}, 0.9, 0)
    np.testing.assert_allclose(average["w"], 9.0, rtol=1e-6)
    average = ema_update(average, {"w": jnp.full(1, 10.0)}, 0.9, 10_000)
    np.testing.assert_allclose(average["w"], 9.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lion"}, "'lion': choose one of adamw"),
        ({"schedule": "cos"}, "'cos': choose one of constant"),
        ({"learning_rate": 0.0}, "learning_rate 0.0 must be above 0"),
        ({"b2": 1.0}, r"b2 1.0 must be in \[0, 1\)"),
        ({"step_epochs": (9, 6)}, "step_epochs"),
        ({"name": "adam", "weight_decay": 0.1}, "use adamw"),
        ({"schedule": "rsqrt"}, "set warmup_steps"),
        ({"clip_norm": -1.0}, "clip_norm"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**options)


def test_a_warm_up_as_long_as_the_training_is_refused():
    with pytest.raises(UserError, match="warmup_steps 10 must be below the 10 steps"):
        make_schedule(OptimizerConfig(warmup_steps=10), 10, 1)
    with pytest.raises(UserError, match="nothing to train"):
        make_schedule(OptimizerConfig(), 0, 1)


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adam():
    config = OptimizerConfig(name="muon", learning_rate=0.1, clip_norm=0.0)
    trained = params()
    optimizer, _ = make_optimizer(config, trained, 100, 10)
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), trained)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(trained), trained)
    # Orthogonal up to scale: all singular values of a 3 x 4 update are about sqrt(4) * 0.2 * lr.
    for name in ("kernel", "experts"):
        for update, gradient in zip(
            jnp.reshape(updates[name][...], (-1, 3, 4)),
            jnp.reshape(gradients[name][...], (-1, 3, 4)),
            strict=True,
        ):
            np.testing.assert_allclose(jnp.linalg.svd(update)[1], 0.04, rtol=0.35)
            assert jnp.sum(update * gradient) < 0
    # Adam's first step is the sign of the gradient, at one size for all entries.
    for name in ("embedding", "head", "bias", "relative_bias", "logit_scale", "expert_bias"):
        step, gradient = updates[name][...], gradients[name][...]
        np.testing.assert_array_equal(jnp.sign(step), -jnp.sign(gradient))
        np.testing.assert_allclose(jnp.abs(step), jnp.abs(step).max(), rtol=1e-3)


def test_a_part_of_the_model_moves_at_its_own_rate():
    # SGD without momentum moves by rate * factor * gradient: 0.5, times 0.1 for the head.
    config = OptimizerConfig(
        name="sgd", b1=0.0, learning_rate=0.5, clip_norm=0.0, rate_scale={"head": 0.1, "kernel": 0}
    )
    state = params()
    optimizer, _ = make_optimizer(config, state, 10, 1)
    updates, _ = optimizer.update(state, optimizer.init(state), state)  # gradients of one
    expected = {"head": -0.05, "kernel": 0.0}
    for path, update in nnx.to_flat_state(updates):
        np.testing.assert_allclose(update[...], expected.get(path[0], -0.5), rtol=1e-6)


def test_the_longest_name_decides_and_half_a_name_is_none():
    tree = {"head": {name: jnp.ones(()) for name in ("out", "in", "mid")}, "header": jnp.ones(())}
    scales = {"head/out": 2, "head": 3, "head/mid": 1}
    config = OptimizerConfig(
        name="sgd", b1=0.0, learning_rate=1.0, clip_norm=0.0, rate_scale=scales
    )
    optimizer, _ = make_optimizer(config, tree, 10, 1)
    updates, _ = optimizer.update(tree, optimizer.init(tree), tree)
    steps = jax.tree.map(float, updates)
    assert steps == {"head": {"out": -2.0, "in": -3.0, "mid": -1.0}, "header": -1.0}


def test_a_rate_for_nothing_is_refused():
    with pytest.raises(UserError, match="names 'experst', which is not trained; did you mean 'exp"):
        make_optimizer(OptimizerConfig(rate_scale={"experst": 0.1}), params(), 10, 1)
    make_optimizer(OptimizerConfig(rate_scale={"experst": 1}), params(), 10, 1)
    with pytest.raises(UserError, match=r"rate_scale\['gate'\] is -1"):
        OptimizerConfig(rate_scale={"gate": -1})
