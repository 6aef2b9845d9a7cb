import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.models import gates
from moemoe_jax.models.encoded import Encoded
from moemoe_jax.nn.rows import Rows

# P = 2 products x Q = 3 questions, U = 4 distinct ones, S = 2 sources, K = 5 tokens, D = 6.
INDEX = jnp.array([[3, 0, 0], [1, 2, 3]])


def questions():
    tokens = jax.random.normal(jax.random.key(0), (4, 5, 6))
    return Encoded(tokens, jnp.arange(5) < jnp.array([[5], [2], [1], [3]]))


def sources():
    """An image of one row that stands for five tokens, a text of three."""
    rows = jax.random.normal(jax.random.key(1), (2, 4, 6))
    return Rows(rows, ((1, "tile"), (3, "pad")))


def source_token(rows, p, s, k):
    """The vector of a source at a token, of `sources`."""
    if s == 1:
        return np.asarray(rows.values[p, 1 + k]) if k < 3 else np.zeros(6)
    return np.asarray(rows.values[p, 0])


def gate(name):
    """A gate whose parameters are all of order one."""
    layer = gates.GATES[name](2, 6, rngs=nnx.Rngs(0))
    state = nnx.state(layer)
    noise = nnx.Rngs(7)
    moved = jax.tree.map(lambda x: x + 0.5 * jax.random.normal(noise.params(), x.shape), state)
    nnx.update(layer, moved)
    return layer


def test_a_new_gate_weighs_all_sources_alike():
    for name in ("token", "pooled", "cross", "learned"):
        layer = gates.GATES[name](4, 6, rngs=nnx.Rngs(0))
        rows = jax.random.normal(jax.random.key(1), (2, 4 * 5, 6))
        logits = layer(questions(), INDEX, Rows(rows, ((5, "pad"),) * 4), 5)
        chex.assert_trees_all_close(logits, jnp.full((2, 3, 4, 5), 0.25), atol=0.15)


@pytest.mark.parametrize("name", gates.GATES)
def test_every_gate_equals_loops(name):
    layer, question, rows = gate(name), questions(), sources()
    got = layer(question, INDEX, rows, 5)
    chex.assert_shape(got, (2, 3, 2, 5))
    if name in ("token", "pooled", "cross"):
        kernel, bias = np.asarray(layer.score.kernel[...]), np.asarray(layer.score.bias[...])
    for p, q, s, k in np.ndindex(2, 3, 2, 5):
        row = int(INDEX[p, q])
        tokens = np.asarray(question.rows[row])
        real = tokens[np.asarray(question.valid[row])]
        if name == "unit":
            expected = 1.0
        elif name == "learned":
            expected = layer.logits[...][s]
        else:
            seen = {"token": tokens[k], "pooled": real.mean(axis=0)}.get(name)
            if name == "cross":
                scores = real @ source_token(rows, p, s, k) / np.sqrt(6)
                shares = np.exp(scores - scores.max())
                seen = shares @ real / shares.sum()
            expected = seen @ kernel[:, s] + bias[s]
        np.testing.assert_allclose(got[p, q, s, k], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "both", "alone"),
    [
        ("none", (0.0, np.log(3.0)), (0.0, np.log(3.0))),
        ("softmax", (0.25, 0.75), (1.0, 1.0)),
        ("sigmoid", (0.5, 0.75), (0.5, 0.75)),
    ],
)
def test_a_missing_source_has_weight_zero_and_softmax_shares_it_out(norm, both, alone):
    logits = jnp.broadcast_to(jnp.array([0.0, jnp.log(3.0)])[:, None], (4, 1, 2, 3))
    present = jnp.array([[True, True], [True, False], [False, True], [False, False]])
    counts = jnp.broadcast_to(present[:, :, None], (4, 2, 3))
    weights = gates.gate_weights(logits, counts, norm)
    pairs = jnp.array([both, (alone[0], 0.0), (0.0, alone[1]), (0.0, 0.0)])
    expected = jnp.broadcast_to(pairs[:, None, :, None], (4, 1, 2, 3))
    chex.assert_trees_all_close(weights, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("read", [[[1, 1, 1], [1, 1, 1]], [[1, 1, 1], [0, 0, 0]]]),
        ("zero", [[[1, 1, 1], [1, 0, 0]], [[1, 1, 0], [0, 0, 0]]]),
    ],
)
def test_where_a_source_counts(padding, expected):
    valid = jnp.array([[[1, 1, 1], [1, 0, 0]], [[1, 1, 0], [1, 1, 1]]], bool)
    present = jnp.array([[True, True], [True, False]])
    got = gates.counting_tokens(valid, present, padding)
    chex.assert_trees_all_equal(got, jnp.array(expected, bool))


def test_every_padding_is_tried_above():
    assert set(gates.PADDINGS) == {"read", "zero"}


def test_every_norm_is_tried_above():
    assert set(gates.GATE_NORMS) == {"none", "softmax", "sigmoid"}


@pytest.mark.parametrize("norm", gates.GATE_NORMS)
def test_a_missing_source_has_no_gradient_and_a_product_without_any_a_finite_one(norm):
    counts = jnp.broadcast_to(jnp.array([[True, False], [False, False]])[:, :, None], (2, 2, 3))
    probe = jax.random.normal(jax.random.key(2), (2, 1, 2, 3))
    logits = 50.0 * jax.random.normal(jax.random.key(3), (2, 1, 2, 3))
    gradient = jax.grad(lambda x: jnp.sum(gates.gate_weights(x, counts, norm) * probe))(logits)
    chex.assert_tree_all_finite(gradient)
    chex.assert_trees_all_equal(gradient[0, :, 1], jnp.zeros((1, 3)))
    chex.assert_trees_all_equal(gradient[1], jnp.zeros((1, 2, 3)))
