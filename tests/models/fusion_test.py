import dataclasses
import functools
import itertools

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from moemoe_jax.models import encoded, fusion, gates
from moemoe_jax.models.config import SourceSpec
from moemoe_jax.models.encoded import Encoded
from moemoe_jax.models.fusion import Fused, FusionConfig
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.rows import Rows, join
from tests.models.tiny import MIXTURE, QUICK, VISION, WITH_IMAGE, random_model

# P = 2 products x Q = 3 questions, U = 4 distinct ones.
INDEX = jnp.array([[3, 0, 0], [1, 2, 3]])


def test_the_papers_gate_and_fusion_by_hand():
    layer = gates.TokenGate(2, 2, rngs=nnx.Rngs(0))
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
    weights = gates.gate_weights(logits, jnp.ones((1, 2, 2), bool), "none")
    built = fusion.literal(Fused(rows, weights, jnp.ones((1, 1, 2), bool)))
    # e = alpha I + beta C: 1.5 (1, 10) + 3.5 (1, 1) and 3.5 (2, 20) - 2.5 (0, 1).
    expected = jnp.array([[[5.0, 18.5], [7.0, 67.5]]])
    chex.assert_trees_all_close(built.sources, Rows(expected, ((2, "pad"),)))
    assert built.weights is None


def test_padding_that_counts_as_zero_is_not_in_e():
    # Two sources of K = 3 tokens, the second with one real token: e there is their sum, elsewhere
    # the first alone, whatever the second's encoding says at its padding.
    rows = Rows(jnp.array([[[1.0], [2.0], [3.0], [10.0], [7.0], [9.0]]]), ((3, "pad"),) * 2)
    counts = gates.counting_tokens(
        jnp.array([[[1, 1, 1], [1, 0, 0]]], bool), jnp.array([[True, True]]), "zero"
    )
    weights = gates.gate_weights(jnp.ones((1, 1, 2, 3)), counts, "none")
    e = fusion.literal(Fused(rows, weights, jnp.ones((1, 1, 3), bool))).sources
    chex.assert_trees_all_close(e.values, jnp.array([[[11.0], [2.0], [3.0]]]))
    # Both have weight one wherever they count, and the short one's zeros do not lower its mean.
    shares = gates.source_shares(weights, counts)
    chex.assert_trees_all_close(shares, jnp.array([[[1.0, 1.0]]]))
    nowhere = gates.source_shares(weights * 0, counts & False)
    chex.assert_trees_all_close(nowhere, jnp.zeros((1, 1, 2)))


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
        made = encoded.repeat_image(rows, 8, fusing.image_repeat)
        if not whole or fusing.image_repeat == "interpolate":
            return made
        index = {"tile": [0, 1, 2, 3] * 2, "interleave": [0, 0, 1, 1, 2, 2, 3, 3]}
        tokens = jnp.pad(rows, ((0, 0), (0, 4), (0, 0)))  # "pad"
        if fusing.image_repeat in index:
            tokens = rows[:, jnp.array(index[fusing.image_repeat])]
        return Encoded(tokens, made.valid)

    def short(rows, whole):
        text = encoded.extend_text(Encoded(rows, jnp.ones((2, 5), bool)), 8)
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


NORMS = tuple(gates.GATE_NORMS)


SWITCHES = tuple(
    itertools.product(
        gates.GATES, NORMS, encoded.IMAGE_REPEATS, gates.PADDINGS, fusion.FUSION_MASKS
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
