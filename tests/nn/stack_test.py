import dataclasses

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from moemoe_jax.nn.linear import Linear
from moemoe_jax.nn.rows import Rows
from moemoe_jax.nn.stack import Stack, shortest_pattern, stack_layers, unstack_layers
from moemoe_jax.nn.t5 import T5Config, T5Decoder, T5Encoder

CONFIG = T5Config(
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_heads=2,
    num_layers=3,
    num_decoder_layers=3,
    dropout=0.2,
    activation="gated-gelu",
)


class Narrow(nnx.Module):
    def __init__(self, width, rngs):
        init = nnx.initializers.normal(0.5)
        self.up = Linear(4, width, init=init, axes=("embed", "mlp"), rngs=rngs)
        self.down = Linear(width, 4, init=init, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x):
        return x + self.down(jnp.tanh(self.up(x)))


def alternating(scan, remat="none"):
    """Four layers of two kinds: 3, 5, 3, 5 hidden channels."""
    rngs = nnx.Rngs(0)
    return Stack(lambda i: Narrow((3, 5)[i % 2], rngs), [3, 5, 3, 5], scan=scan, remat=remat)


def call(block, index, x, scale):
    y = block(x) * scale + index
    return y, {"mean": jnp.mean(y), "index": index}


@pytest.mark.parametrize(
    ("kinds", "length"),
    [("aaaa", 1), ("abab", 2), ("aab", 3), ("abaaba", 3), ("a", 1), ("abb", 3)],
)
def test_the_shortest_pattern(kinds, length):
    assert shortest_pattern(kinds) == length


def test_stacking_and_its_inverse():
    states = [nnx.state(Narrow(3, nnx.Rngs(i))) for i in range(3)]
    stacked = stack_layers(states)
    kernel = stacked["up"]["kernel"]
    assert kernel[...].shape == (3, 4, 3)
    assert kernel.logical_axes == ("layers", "embed", "mlp")
    back = unstack_layers(stacked)
    assert back[1]["up"]["kernel"].logical_axes == ("embed", "mlp")
    chex.assert_trees_all_equal(back, states)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_pattern_of_two_kinds_scans_to_the_same_numbers(remat):
    unrolled, scanned = alternating(False), alternating(True, remat)
    assert [len(s.blocks) for s in (unrolled, scanned)] == [4, 2]
    x = jnp.linspace(-1, 1, 4)[None]

    def outcome(stack):
        graph, state = nnx.split(stack)
        scales = stack.for_each_layer(jnp.float32(0.5))

        def loss(state):
            stack = nnx.merge(graph, state)
            y, outputs = stack(call, x, scales)
            return jnp.sum(y**2), stack.by_layer(outputs)

        value, gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
        nnx.update(stack, gradient)
        return value, stack.layer_states()

    (value, outputs), gradients = outcome(unrolled)
    assert [int(output["index"]) for output in outputs] == [0, 1, 2, 3]
    chex.assert_trees_all_close(outcome(scanned), ((value, outputs), gradients), atol=1e-5)


def test_layer_states_move_between_unrolled_and_scanned():
    unrolled, scanned = alternating(False), alternating(True)
    states = jax.tree.map(lambda a: a + 1, unrolled.layer_states())
    scanned.set_layer_states(states)
    unrolled.set_layer_states(scanned.layer_states())
    chex.assert_trees_all_equal(unrolled.layer_states(), states)
    assert scanned.blocks[0].up.kernel.logical_axes == ("layers", "embed", "mlp")
    with pytest.raises(ValueError, match="3 layer states for a stack of 4 layers"):
        scanned.set_layer_states(states[:3])


def test_an_unknown_remat_is_refused():
    with pytest.raises(ValueError, match="remat 'most' is none of none, full, dots"):
        alternating(False, "most")


def outcome(build, run):
    """Value, and gradients by layer, of sum(sin(run(model)))."""
    model = build()
    graph, state = nnx.split(model)
    loss = lambda state: jnp.sum(jnp.sin(run(nnx.merge(graph, state))))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(state)
    nnx.update(model, gradient)
    shared = {k: v for k, v in nnx.to_pure_dict(nnx.state(model)).items() if k != "stack"}
    return value, shared, model.stack.layer_states()


@pytest.mark.parametrize(("remat", "per_layer_bias"), [("none", False), ("full", True)])
def test_a_scanned_encoder_equals_the_unrolled_one_with_dropout(remat, per_layer_bias):
    config = dataclasses.replace(CONFIG, per_layer_bias=per_layer_bias)
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    valid = jnp.arange(5) < jnp.array([[5], [2]])
    results = [
        outcome(
            lambda c=c: T5Encoder(c, rngs=nnx.Rngs(0)), lambda m: m(x, valid, jax.random.key(3))[0]
        )
        for c in (config, dataclasses.replace(config, scan_layers=True, remat=remat))
    ]
    chex.assert_trees_all_close(*results, atol=1e-5, rtol=1e-5)


def test_a_scanned_decoder_equals_the_unrolled_one():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 3, 4, 16))
    sources = Rows(jax.random.normal(keys[1], (2, 9, 16)), ((5, "tile"), (4, "pad")))
    weights = jax.random.uniform(keys[2], (2, 3, 2, 5))
    valid, memory_valid = jnp.ones((2, 3, 4), bool), jnp.ones((2, 3, 5), bool)

    def run(decoder):
        memory = decoder.project(sources)
        axis = decoder.stack.batch_axis
        assert {a.shape[axis] for a in jax.tree.leaves(memory)} == {2}
        return decoder(x, valid, memory, weights, memory_valid)[0]

    results = [
        outcome(lambda c=c: T5Decoder(c, rngs=nnx.Rngs(0)), run)
        for c in (CONFIG, dataclasses.replace(CONFIG, scan_layers=True))
    ]
    chex.assert_trees_all_close(*results, atol=1e-5, rtol=1e-5)
