import dataclasses
import functools
import itertools
import re

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.models import fusion
from moemoe_jax.models.config import SourceSpec
from moemoe_jax.models.fusion import Encoded, Fused, FusionConfig
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.rows import REPEATS, Rows, join
from tests.models.tiny import MIXTURE, QUICK, VISION, WITH_IMAGE, random_model

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
    layer = fusion.GATES[name](2, 6, rngs=nnx.Rngs(0))
    state = nnx.state(layer)
    noise = nnx.Rngs(7)
    moved = jax.tree.map(lambda x: x + 0.5 * jax.random.normal(noise.params(), x.shape), state)
    nnx.update(layer, moved)
    return layer


def test_the_papers_gate_and_fusion_by_hand():
    layer = fusion.TokenGate(2, 2, rngs=nnx.Rngs(0))
    layer.score.kernel[...] = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    layer.score.bias[...] = jnp.array([0.5, -0.5])
    question = Encoded(jnp.array([[[1.0, 2.0], [3.0, -1.0]]]), jnp.array([[True, False]]))
    rows = join(
        [jnp.array([[[1.0, 10.0], [2.0, 20.0]]]), jnp.array([[[1.0, 1.0], [0.0, 1.0]]])],
        ["pad", "pad"],
    )
    logits = layer(question, jnp.array([[0]]), rows, 2)
    # alpha = q_0 + 0.5, beta = 2 q_1 - 0.5, at the padded token as well.
    chex.assert_trees_all_close(logits, jnp.array([[[[1.5, 3.5], [3.5, -2.5]]]]))
    weights = fusion.gate_weights(logits, jnp.ones((1, 2, 2), bool), "none")
    built = fusion.literal(Fused(rows, weights, jnp.ones((1, 1, 2), bool)))
    # e = alpha I + beta C: 1.5 (1, 10) + 3.5 (1, 1) and 3.5 (2, 20) - 2.5 (0, 1).
    expected = jnp.array([[[5.0, 18.5], [7.0, 67.5]]])
    chex.assert_trees_all_close(built.sources, Rows(expected, ((2, "pad"),)))
    assert built.weights is None


def test_a_new_gate_weighs_all_sources_alike():
    for name in ("token", "pooled", "cross", "learned"):
        layer = fusion.GATES[name](4, 6, rngs=nnx.Rngs(0))
        rows = jax.random.normal(jax.random.key(1), (2, 4 * 5, 6))
        logits = layer(questions(), INDEX, Rows(rows, ((5, "pad"),) * 4), 5)
        chex.assert_trees_all_close(logits, jnp.full((2, 3, 4, 5), 0.25), atol=0.15)


@pytest.mark.parametrize("name", fusion.GATES)
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
    weights = fusion.gate_weights(logits, counts, norm)
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
    got = fusion.counting_tokens(valid, present, padding)
    chex.assert_trees_all_equal(got, jnp.array(expected, bool))


def test_padding_that_counts_as_zero_is_not_in_e():
    # Two sources of K = 3 tokens, the second with one real token: e there is their sum, elsewhere
    # the first alone, whatever the second's encoding says at its padding.
    rows = Rows(jnp.array([[[1.0], [2.0], [3.0], [10.0], [7.0], [9.0]]]), ((3, "pad"),) * 2)
    counts = fusion.counting_tokens(
        jnp.array([[[1, 1, 1], [1, 0, 0]]], bool), jnp.array([[True, True]]), "zero"
    )
    weights = fusion.gate_weights(jnp.ones((1, 1, 2, 3)), counts, "none")
    e = fusion.literal(Fused(rows, weights, jnp.ones((1, 1, 3), bool))).sources
    chex.assert_trees_all_close(e.values, jnp.array([[[11.0], [2.0], [3.0]]]))
    # Both have weight one wherever they count, and the short one's zeros do not lower its mean.
    shares = fusion.source_shares(weights, counts)
    chex.assert_trees_all_close(shares, jnp.array([[[1.0, 1.0]]]))
    nowhere = fusion.source_shares(weights * 0, counts & False)
    chex.assert_trees_all_close(nowhere, jnp.zeros((1, 1, 2)))


def test_every_padding_is_tried_above():
    assert set(fusion.PADDINGS) == {"read", "zero"}


def test_every_norm_is_tried_above():
    assert set(fusion.GATE_NORMS) == {"none", "softmax", "sigmoid"}


@pytest.mark.parametrize("norm", fusion.GATE_NORMS)
def test_a_missing_source_has_no_gradient_and_a_product_without_any_a_finite_one(norm):
    counts = jnp.broadcast_to(jnp.array([[True, False], [False, False]])[:, :, None], (2, 2, 3))
    probe = jax.random.normal(jax.random.key(2), (2, 1, 2, 3))
    logits = 50.0 * jax.random.normal(jax.random.key(3), (2, 1, 2, 3))
    gradient = jax.grad(lambda x: jnp.sum(fusion.gate_weights(x, counts, norm) * probe))(logits)
    chex.assert_tree_all_finite(gradient)
    chex.assert_trees_all_equal(gradient[0, :, 1], jnp.zeros((1, 3)))
    chex.assert_trees_all_equal(gradient[1], jnp.zeros((1, 2, 3)))


IMAGE = jnp.array([[[0.0], [8.0]]])


@pytest.mark.parametrize(
    ("repeat", "expected", "real"),
    [
        ("tile", [0, 8, 0, 8, 0, 8], 6),
        ("interleave", [0, 0, 0, 8, 8, 8], 6),
        # Token centres are at 1/6 ... 11/6 of a patch, patch centres at 1/2 and 3/2.
        ("interpolate", [0, 0, 8 / 3, 16 / 3, 8, 8], 6),
        ("pad", [0, 8, 0, 0, 0, 0], 2),
    ],
)
def test_an_image_is_stretched_in_the_order_of_its_name(repeat, expected, real):
    got = fusion.repeat_image(IMAGE, 6, repeat)
    if repeat == "interpolate":
        expected = np.interp((np.arange(6) + 0.5) / 3 - 0.5, [0, 1], [0, 8])
    else:
        assert got.rows is IMAGE  # whatever they stand for
    tokens = REPEATS[got.repeat].spread(got.rows[0, :, 0], 6)
    chex.assert_trees_all_close(tokens, jnp.array(expected, jnp.float32), atol=1e-5)
    chex.assert_trees_all_equal(got.valid, jnp.arange(6)[None] < real)


def test_every_repeat_is_tried_above_and_keeps_an_image_that_fits():
    assert set(fusion.IMAGE_REPEATS) == {"tile", "interleave", "interpolate", "pad"}
    for repeat in fusion.IMAGE_REPEATS:
        got = fusion.repeat_image(IMAGE, 2, repeat)
        chex.assert_trees_all_close(got.rows, IMAGE)
        chex.assert_trees_all_equal(got.valid, jnp.ones((1, 2), bool))


@pytest.mark.parametrize(
    ("repeat", "length", "message"),
    [
        ("tile", 100, "data.text_length 100 is not a multiple of the 64 image tokens; set data."
         "text_length=128, or model.fusion.image_repeat=interpolate"),
        ("interleave", 10, "not a multiple of the 64 image tokens; set data.text_length=64"),
        ("pad", 63, "data.text_length 63 is shorter than the 64 image tokens; set data.text_len"),
    ],
)  # fmt: skip
def test_a_text_length_that_the_image_cannot_fill_is_refused(repeat, length, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fusion.check_image_length(repeat, 64, length)


@pytest.mark.parametrize(
    ("repeat", "length"), [("tile", 128), ("interleave", 64), ("interpolate", 7), ("pad", 65)]
)
def test_a_text_length_that_fits_is_accepted(repeat, length):
    fusion.check_image_length(repeat, 64, length)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("ones", [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]),
        ("context", [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
        ("union", [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]),
    ],
)
def test_masks_by_hand(mask, expected):
    # An image of three tokens and a text of two; product 1 lacks the text, product 2 both.
    valid = jnp.broadcast_to(jnp.arange(4) < jnp.array([[3], [2]]), (3, 2, 4))
    present = jnp.array([[True, True], [True, False], [False, False]])
    got = fusion.fusion_valid(valid, present, (False, True), mask)
    chex.assert_trees_all_equal(got, jnp.array(expected, bool))


def test_every_mask_is_tried_above():
    assert set(fusion.FUSION_MASKS) == {"ones", "context", "union"}


def test_the_mean_of_real_tokens_by_hand():
    tokens = jnp.array([[[1.0], [3.0], [50.0]], [[7.0], [7.0], [7.0]]])
    valid = jnp.array([[True, True, False], [False, False, False]])
    chex.assert_trees_all_close(fusion.mean_pool(Encoded(tokens, valid)), jnp.array([[2.0], [0.0]]))
    # Of the tokens 1 3 1 3, the first three.
    tiled = Encoded(tokens[:1, :2], jnp.array([[True, True, True, False]]), "tile")
    chex.assert_trees_all_close(fusion.mean_pool(tiled), jnp.array([[5 / 3]]), rtol=1e-6)


@pytest.mark.parametrize("field", ["gate", "gate_norm", "image_repeat", "mask", "path"])
def test_an_unknown_name_is_refused_with_the_known_ones(field):
    known = getattr(FusionConfig(), field)
    with pytest.raises(ValueError, match=f"model.fusion.{field} is 'no'; choose one of .*{known}"):
        FusionConfig(**{field: "no"})


def test_the_shared_path_is_the_literal_one_in_value_and_gradient():
    # The question also steers the decoder's start and its mixture, which see [P Q, 1] rows there.
    config = dataclasses.replace(
        MIXTURE, moe=MoEConfig(routing_level="question", router_std=1.0), question_start=True
    )
    keys = jax.random.split(jax.random.key(0), 5)
    # A token that no source fills, and a product (the last) of which nothing may be looked at.
    valid = jnp.arange(8) < jnp.array([[8, 5, 8], [3, 8, 8], [0, 0, 0]])[..., None]
    inputs = {
        "sources": Rows(jax.random.normal(keys[0], (3, 10, 16)), ((2, "tile"), (8, "pad"))),
        "weights": jax.random.normal(keys[1], (3, 3, 2, 8)).at[1, :, 0].set(0.0),
        "question": jax.random.normal(keys[2], (3, 3, 16)),
    }
    answer = jax.random.randint(keys[3], (3, 3, 4), 1, 50)
    probe = jax.random.normal(keys[4], (3, 3, 4, 50))
    results = []
    for path in ("shared", "literal"):
        fusing = FusionConfig(path=path)
        model = random_model(dataclasses.replace(config, fusion=fusing))
        graph, params, rest = nnx.split(model, nnx.PathContains("decoder"), ...)

        @jax.jit
        @jax.value_and_grad
        def loss(trained, graph=graph, rest=rest):
            params, inputs = trained
            fused = Fused(inputs["sources"], inputs["weights"], valid)
            model = nnx.merge(graph, params, rest)
            hidden, stats = model.decode(fused, answer, answer > 0, inputs["question"])
            return jnp.sum(jnp.sin(model.logits(hidden)) * probe) + stats["decoder/1"].aux_loss

        results.append(loss((params, inputs)))
    chex.assert_tree_all_finite(results[0])
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(results[0]))
    chex.assert_trees_all_close(*results, atol=1e-4, rtol=1e-5)  # of gradients that reach 20


def outcomes(fusing):
    """What cross-attention gives with an image of 4 rows and texts of 8 and 5 as K = 8 tokens.

    Three times, with the gradients by all that goes in: with rows, on both paths, and with every
    source as its K tokens on the literal one.
    """
    specs = (*WITH_IMAGE.sources, SourceSpec("title", "text"))
    vision = dataclasses.replace(VISION, image_size=8)
    config = dataclasses.replace(
        WITH_IMAGE, text_length=8, sources=specs, fusion=fusing, vision=vision
    )
    keys = jax.random.split(jax.random.key(0), 5)
    given = {
        "image": jax.random.normal(keys[0], (2, 4, 16)),
        "long": jax.random.normal(keys[1], (2, 8, 16)),
        "short": jax.random.normal(keys[2], (2, 5, 16)),
        "questions": jax.random.normal(keys[3], (4, 8, 16)),
    }
    x = jax.random.normal(keys[4], (2, 3, 2, 16))
    real = jnp.arange(8) < jnp.array([[6], [8]])
    asked = jnp.arange(8) < jnp.array([[3], [8], [1], [5]])
    present = jnp.array([[True, True, True], [True, False, True]])

    def image(rows, whole):
        made = fusion.repeat_image(rows, 8, fusing.image_repeat)
        if not whole or fusing.image_repeat == "interpolate":
            return made
        index = {"tile": [0, 1, 2, 3] * 2, "interleave": [0, 0, 1, 1, 2, 2, 3, 3]}
        tokens = jnp.pad(rows, ((0, 0), (0, 4), (0, 0)))  # "pad"
        if fusing.image_repeat in index:
            tokens = rows[:, jnp.array(index[fusing.image_repeat])]
        return Encoded(tokens, made.valid)

    def short(rows, whole):
        text = fusion.extend_text(Encoded(rows, jnp.ones((2, 5), bool)), 8)
        return text.replace(rows=jnp.pad(rows, ((0, 0), (0, 3), (0, 0)))) if whole else text

    @functools.partial(jax.jit, static_argnums=(2, 3), compiler_options=QUICK)
    def run(params, given, path, whole):
        def loss(params, given):
            model = nnx.merge(graph, params, rest)
            sources = (
                image(given["image"], whole),
                Encoded(given["long"], real),
                short(given["short"], whole),
            )
            fused = model.fuse(Encoded(given["questions"], asked), INDEX, sources, present)
            shares = fused.shares
            if path == "literal":
                fused = fusion.literal(fused)
            layer = model.decoder.stack.blocks[0].cross_attention
            shape = (*fused.valid.shape[:2], *x.shape[2:])
            y = layer(x.reshape(shape), layer.project(fused.sources), fused.weights, fused.valid)
            return jnp.sum(jnp.sin(y)), (y.reshape(x.shape), shares)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, given)

    graph, params, rest = nnx.split(
        random_model(config), nnx.Any(nnx.PathContains("gate"), nnx.PathContains(0)), ...
    )
    ways = (("shared", False), ("literal", False), ("literal", True))
    return [run(params, given, path, whole) for path, whole in ways]


NORMS = tuple(fusion.GATE_NORMS)
SWITCHES = tuple(
    itertools.product(
        fusion.GATES, NORMS, fusion.IMAGE_REPEATS, fusion.PADDINGS, fusion.FUSION_MASKS
    )
)


def agree(gate, norm, repeat, padding, mask):
    rows, literal, tokens = outcomes(FusionConfig(gate, norm, repeat, padding, mask))
    chex.assert_tree_all_finite(rows)
    for other in (literal, tokens):  # gradients reach 10
        chex.assert_trees_all_close(rows, other, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "switches",
    [
        ("token", "none", "tile", "read", "ones"),
        ("pooled", "softmax", "tile", "zero", "union"),
        ("cross", "softmax", "pad", "read", "ones"),
        ("cross", "sigmoid", "interleave", "zero", "context"),
        ("learned", "softmax", "interpolate", "zero", "ones"),
        ("unit", "none", "interleave", "read", "union"),
    ],
)
def test_rows_give_what_their_tokens_give_in_value_and_gradient(switches):
    agree(*switches)


@pytest.mark.drill
def test_rows_give_what_their_tokens_give_for_every_switch():
    for switches in SWITCHES:
        agree(*switches)
    print(f"\nfusions in which rows, tokens and e agree: {len(SWITCHES)} of {len(SWITCHES)}")
