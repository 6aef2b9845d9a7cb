import dataclasses
import functools

import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moemoe_jax.models.alignment import AlignmentConfig
from moemoe_jax.models.build import abstract_model
from moemoe_jax.models.config import MoELayers, SourceSpec
from moemoe_jax.models.fusion import FusionConfig
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.training.losses import LossConfig, objective
from tests.models.tiny import MIXTURE, WITH_IMAGE, batch, random_model
from tests.nn.torch_swinv2 import by_name

# Mixtures in all three stacks, so tight that choices are dropped, and a loss with negatives: all
# that could let a row see what else is in the batch.
CROWDED = dataclasses.replace(
    MIXTURE,
    moe=MoEConfig(num_experts=3, top_k=1, capacity_factor=0.7),
    moe_layers=MoELayers(question_encoder="all", context_encoder="all", decoder="odd"),
    alignment=AlignmentConfig(loss="infonce"),
    fusion=FusionConfig(mask="union"),
)


SHARED = (
    "question_embedding",
    "question_encoder",
    "context_encoder",
    "decoder_embedding",
    "decoder",
)


def forward(model, data):
    """The outputs of a batch, compiled."""
    graph, params = nnx.split(model)
    return jax.jit(lambda params: nnx.merge(graph, params)(data))(params)


def value_and_gradient(model):
    """`batch -> ((loss, metrics), gradient by name)`, compiled once a shape."""
    graph, params = nnx.split(model)

    @jax.jit
    def run(params, data):
        def loss(params):
            tokens = jnp.sum((data["answer_ids"] != 0) & data["question_valid"][..., None])
            return objective(nnx.merge(graph, params)(data), data, LossConfig(), tokens)

        return jax.value_and_grad(loss, has_aux=True)(params)

    def call(data):
        value, gradient = run(params, data)
        return value, by_name(gradient)

    return call


def pad(array, widths, value=0):
    widths = widths + [(0, 0)] * (array.ndim - len(widths))
    return np.pad(array, widths, constant_values=value)


def test_padding_of_every_kind_changes_neither_loss_nor_gradient():
    data = batch(CROWDED, products=4, questions=3)
    # Without what the batch has as padding: the last product, and the last row of the table.
    compact = {k: v[:3] for k, v in data.items() if k.startswith(("question_i", "question_v"))}
    compact |= {k: data[k][:3] for k in ("answer_ids",)}
    compact |= {k: {n: v[:3] for n, v in data[k].items()} for k in ("sources", "source_valid")}
    compact["question_ids"] = data["question_ids"][:-1]
    # And with more of it: a question, a longer answer, rows of the table; what it holds is noise.
    rng = np.random.default_rng(1)
    padded = data | {
        "question_ids": pad(data["question_ids"], [(0, 2)]),
        "question_index": pad(data["question_index"], [(0, 0), (0, 1)], 3),
        "question_valid": pad(data["question_valid"], [(0, 0), (0, 1)]),
        "answer_ids": pad(data["answer_ids"], [(0, 0), (0, 1), (0, 2)]),
    }
    padded["answer_ids"][~padded["question_valid"]] = 5
    for name, there in data["source_valid"].items():
        ids = padded["sources"][name]
        ids[~there] = rng.integers(1, 50, ids[~there].shape)
    run = value_and_gradient(random_model(CROWDED))
    (short, metrics), gradient = run(compact)
    (long, long_metrics), long_gradient = run(padded)
    for name in metrics:
        chex.assert_trees_all_close(metrics[name], long_metrics[name], atol=1e-5)
    for name in ("question_encoder/0", "context_encoder.title/0", "decoder/1"):
        assert metrics[f"moe/{name}/dropped"] > 0
    chex.assert_trees_all_close(short, long, rtol=1e-6)
    chex.assert_trees_all_close(gradient, long_gradient, atol=1e-4)
    assert max(np.abs(leaf).max() for leaf in gradient.values()) > 1


@pytest.mark.parametrize("norm", ["none", "softmax"])
def test_a_missing_source_is_as_if_the_model_had_none_of_it(norm):
    config = dataclasses.replace(
        CROWDED,
        moe=MoEConfig(num_experts=3),
        fusion=FusionConfig(gate_norm=norm, mask="union"),
        alignment=AlignmentConfig(),
    )
    data = batch(config, products=3, questions=2)
    # For all three the title is missing; the description is missing for one, now it is there.
    data["source_valid"] = {"title": np.zeros(3, bool), "description": np.ones(3, bool)}
    without = data | {
        name: {"description": data[name]["description"]} for name in ("sources", "source_valid")
    }
    model = random_model(config)
    reduced = random_model(dataclasses.replace(config, sources=config.sources[1:]))
    for part in SHARED:
        nnx.update(getattr(reduced, part), nnx.state(getattr(model, part)))
    # Of two gates and of three projections (question, title, description), the last.
    reduced.gate.score.kernel[...] = model.gate.score.kernel[...][:, 1:]
    reduced.gate.score.bias[...] = model.gate.score.bias[...][1:]
    for mine, theirs in ((0, 0), (1, 2)):
        kernel = model.alignment.reduce[theirs].score.kernel[...]
        reduced.alignment.reduce[mine].score.kernel[...] = kernel

    missing, expected = forward(model, data), forward(reduced, without)
    chex.assert_trees_all_close(missing.logits, expected.logits, atol=1e-5)
    assert missing.alignment[0] == 0
    chex.assert_trees_all_close(missing.alignment[1:], expected.alignment, atol=1e-6)
    chex.assert_trees_all_equal(missing.source_weights[..., 0], jnp.zeros((3, 2)))
    for name, stats in missing.moe.items():
        nothing = jax.tree.map(jnp.zeros_like, stats)  # of the mixture that encodes titles
        chex.assert_trees_all_close(stats, expected.moe.get(name, nothing), atol=1e-6)


def test_three_sources_and_a_product_that_lacks_all_of_them():
    config = dataclasses.replace(
        WITH_IMAGE,
        sources=(
            SourceSpec("title", "text"),
            SourceSpec("image", "image"),
            SourceSpec("description", "text"),
        ),
        fusion=FusionConfig(gate_norm="softmax", mask="union"),
    )
    data = batch(config, products=5)
    for present in data["source_valid"].values():
        present[0] = False  # asked about, and nothing is known
    run = value_and_gradient(random_model(config))
    (loss, metrics), gradient = run(data)
    chex.assert_tree_all_finite((loss, metrics, gradient))
    assert metrics["loss/align"].shape == (3,)
    assert all(np.any(leaf != 0) for leaf in gradient.values())


def test_an_answer_token_changes_nothing_before_it():
    config = dataclasses.replace(
        MIXTURE, moe=MoEConfig(num_experts=4), moe_layers=MoELayers(decoder="all")
    )
    data = batch(config)
    graph, params = nnx.split(random_model(config))
    run = jax.jit(lambda params, data: nnx.merge(graph, params)(data).logits)
    data["answer_ids"] = np.where(data["answer_ids"] == 0, 3, data["answer_ids"])
    before = run(params, data)
    for t in (1, 4):
        changed = data["answer_ids"].copy()
        changed[..., t - 1] = (changed[..., t - 1] + 7) % 40 + 2  # what the decoder reads at t
        after = run(params, data | {"answer_ids": changed})
        asked = data["question_valid"]
        chex.assert_trees_all_close(before[..., :t, :], after[..., :t, :], atol=1e-6)
        assert jnp.all(jnp.max(jnp.abs(before - after)[asked][:, t], axis=-1) > 1e-3)


def test_teacher_forcing_equals_token_by_token():
    config = dataclasses.replace(
        MIXTURE,
        moe=MoEConfig(num_experts=4, routing_level="question"),
        question_start=True,
    )
    data = batch(config)
    model = random_model(config)
    whole = forward(model, data).logits
    graph, params = nnx.split(model)

    @jax.jit
    def prepare(params):
        model = nnx.merge(graph, params)
        question, sources, _ = model.encode(data)
        fused = model.fuse(question, data["question_index"], sources, model.present(data))
        vectors = model.question_vectors(question, data["question_index"])
        rows, *read = model.read(fused)
        return jnp.zeros(rows), read, vectors

    rows, read, vectors = prepare(params)
    inputs = np.pad(data["answer_ids"], ((0, 0), (0, 0), (1, 0)))[..., :-1]

    @functools.partial(jax.jit, static_argnames="first")
    def step(params, token, position, cache, first):
        model = nnx.merge(graph, params)
        embedded = model.embed_answer(token[..., None])
        if first and model.start is not None:
            embedded += model.start(vectors)[:, :, None]
        hidden, cache = model.decoder.step(
            embedded.reshape(*rows.shape, 1, -1),
            position,
            cache,
            *read,
            question=vectors.reshape(*rows.shape, -1),
        )
        return model.logits(hidden.reshape(*token.shape, -1)), cache

    cache, scores = model.decoder.init_cache(*rows.shape, inputs.shape[-1]), []
    for t in range(inputs.shape[-1]):
        score, cache = step(params, inputs[..., t], t, cache, first=t == 0)
        scores.append(score)
    real = data["answer_ids"] != 0
    chex.assert_trees_all_close(jnp.stack(scores, axis=2)[real], whole[real], atol=1e-4)


def test_without_a_question_encoder_there_is_no_alignment_and_every_weight_is_one():
    config = dataclasses.replace(
        MIXTURE, question_encoder=False, fusion=FusionConfig(gate="unit"), share_embeddings="none"
    )
    data = batch(config)
    model = random_model(config)
    names = {path[0] for path, _ in nnx.to_flat_state(nnx.state(model))}
    assert names == {"context_embedding", "context_encoder", "decoder_embedding", "decoder"}
    outputs = forward(model, data)
    assert outputs.alignment.shape == (0,)
    present = np.stack(list(data["source_valid"].values()), axis=1)
    expected = np.broadcast_to(present[:, None], outputs.source_weights.shape)
    chex.assert_trees_all_equal(outputs.source_weights, expected.astype(np.float32))


@pytest.mark.parametrize(
    ("sharing", "tables"),
    [
        ("all", {"decoder_embedding"}),
        ("context_decoder", {"decoder_embedding", "question_embedding"}),
        ("none", {"decoder_embedding", "question_embedding", "context_embedding"}),
    ],
)
def test_how_many_token_tables_there_are(sharing, tables):
    model = abstract_model(dataclasses.replace(MIXTURE, share_embeddings=sharing))
    names = {path[0] for path, _ in nnx.to_flat_state(nnx.state(model))}
    assert {name for name in names if name.endswith("embedding")} == tables
