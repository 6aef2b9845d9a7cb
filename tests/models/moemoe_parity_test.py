"""The whole of MoEMoE against the same model put together from PyTorch parts, weight for weight."""

import dataclasses
import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from moemoe_jax.inference.confidence import sequence_confidence
from moemoe_jax.inference.decoding import decoded, greedy
from moemoe_jax.models.build import abstract_model
from moemoe_jax.models.config import MoELayers, SourceSpec
from moemoe_jax.models.fusion import FusionConfig, literal
from moemoe_jax.nn.moe import MoEConfig
from moemoe_jax.nn.rows import REPEATS
from moemoe_jax.training.losses import LossConfig, objective
from tests.models.tiny import TEXT, VISION, WITH_IMAGE, batch
from tests.models.torch_moemoe import TorchMoEMoE, in_our_names
from tests.nn.torch_swinv2 import by_name

SMALL_TEXT = dataclasses.replace(TEXT, vocab_size=12)  # so that some answers end early
SYSTEMS = {
    # An image of 8 channels that is projected to 16, a text, the paper's fusion.
    "t5": dataclasses.replace(WITH_IMAGE, text=SMALL_TEXT),
    # An image that needs no projection, two texts, gates that sum to one, a mixture in every layer.
    "flan": dataclasses.replace(
        WITH_IMAGE,
        text=dataclasses.replace(SMALL_TEXT, activation="gated-gelu", tie_word_embeddings=False),
        vision=dataclasses.replace(
            VISION, image_size=32, depths=(2, 1), heads=(2, 2), pretrained_window_sizes=(0, 0)
        ),
        sources=(
            SourceSpec("title", "text"),
            SourceSpec("image", "image"),
            SourceSpec("description", "text"),
        ),
        moe=MoEConfig(num_experts=3, top_k=2),
        moe_layers=MoELayers(decoder="all"),
        fusion=FusionConfig(gate_norm="softmax", mask="union"),
    ),
}
LENGTH = 10
SEEDS = {"t5": 20, "flan": 16}  # weights with which some answers end and others do not


def ours(model, data):
    """What `TorchMoEMoE` gives, and the gradient of the total loss, in one compiled function."""
    graph, params = nnx.split(model)

    def loss(params):
        model = nnx.merge(graph, params)
        outputs = model(data)
        question, sources, _ = model.encode(data)
        fused = model.fuse(question, data["question_index"], sources, model.present(data))
        total, metrics = objective(outputs, data, LossConfig(), jnp.sum(data["answer_ids"] != 0))
        return total, {
            "question": question.rows,
            "sources": [tokens_of(source) for source in sources],
            "weights": fused.weights,
            "e": literal(fused).sources.values,
            "logits": outputs.logits,
            "alignment": outputs.alignment,
            "metrics": metrics,
        }

    (total, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return found | {"total": total, "gradient": gradient}


def tokens_of(source):
    """All K tokens of a source, [P, K, D]."""
    spread = REPEATS[source.repeat].spread
    return jnp.swapaxes(spread(jnp.swapaxes(source.rows, 1, 2), source.valid.shape[1]), 1, 2)


def answers(model, data):
    """Greedy ids [P, Q, L], the log-probability of each token, and the answers' confidence."""
    graph, params = nnx.split(model)

    @jax.jit
    def run(params):
        model = nnx.merge(graph, params)
        index, asked = data["question_index"], data["question_valid"]
        question, sources, _ = model.encode(data)
        fused = model.fuse(question, index, sources, model.present(data))
        vectors = model.question_vectors(question, index)
        ids, scores = greedy(model, fused, vectors, asked, LENGTH)
        return ids, scores, sequence_confidence(scores, decoded(ids, asked))

    return run(params)


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request):
    config = SYSTEMS[request.param]
    data = batch(config)
    theirs = TorchMoEMoE(config, SEEDS[request.param])
    graph, shapes = nnx.split(abstract_model(config))
    model = nnx.merge(graph, in_our_names(shapes, theirs))
    expected = theirs(data)
    total = expected["cross_entropy"] + expected["alignment"].sum() + 0.1 * expected["auxiliary"]
    total.backward()
    return types.SimpleNamespace(
        data=data,
        asked=data["question_valid"],
        products=np.nonzero(data["question_valid"])[0],
        theirs=theirs,
        expected=expected | {"total": total},
        model=model,
        found=ours(model, data),
    )


def close(ours, theirs, atol):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), atol=atol, rtol=1e-5)


def test_the_encoders(system):
    index = system.data["question_index"][system.asked]
    close(system.found["question"][index], system.expected["question"], 1e-5)
    ours, theirs = system.found["sources"], system.expected["sources"]
    assert len(ours) == len(theirs)
    for source, spec in enumerate(system.model.config.sources):
        present = system.data["source_valid"][spec.name][system.products]
        close(ours[source][system.products[present]], theirs[source][present], 1e-5)


def test_the_gate_and_what_it_fuses(system):
    # [P, Q, S, K] there, one row an asked question [R, K, S] here.
    weights = np.swapaxes(np.asarray(system.found["weights"]), 2, 3)[system.asked]
    close(weights, system.expected["weights"], 1e-5)
    assert np.std(weights) > 0.1
    fused = np.asarray(system.found["e"]).reshape(*system.asked.shape, *weights.shape[1:2], -1)
    close(fused[system.asked], system.expected["e"], 2e-5)


def test_the_logits_of_real_answer_tokens(system):
    real = system.data["answer_ids"][system.asked] != 0
    logits = np.asarray(system.found["logits"])[system.asked]
    close(logits[real], system.expected["logits"][real], 1e-4)


def test_the_losses(system):
    metrics = system.found["metrics"]
    close(metrics["loss/cross_entropy"], system.expected["cross_entropy"], 1e-5)
    close(metrics["loss/align"], system.expected["alignment"], 1e-5)
    close(metrics["loss/aux"], system.expected["auxiliary"], 1e-5)
    close(system.found["total"], system.expected["total"], 1e-5)
    assert np.all(metrics["loss/align"] > 0.1)


def test_the_gradient_of_every_parameter(system):
    ours = by_name(system.found["gradient"])
    theirs = by_name(in_our_names(system.found["gradient"], system.theirs, gradients=True))
    for name in ours:
        scale = np.abs(theirs[name]).max()
        assert scale > 1e-6, f"{name} has no gradient to compare"
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4 * scale, err_msg=name)
    for part in (
        "gate.score.kernel",
        "alignment.reduce.0.score.kernel",
        "decoder_embedding.table",
        "question_embedding.table",
        "question_encoder.stack.blocks.0.self_attention.query.kernel",
        "context_encoder.relative_bias.table",
        "image_encoder.patch_embedding.kernel",
        "decoder.stack.blocks.0.cross_attention.key.kernel",
        "decoder.stack.blocks.1.feed_forward.router.kernel",
        "decoder.stack.blocks.1.feed_forward.wo.kernel",
    ):
        assert part in ours


def test_greedy_answers_and_their_scores(system):
    with torch.no_grad():
        expected_ids, expected_scores = system.theirs.generate(system.expected, LENGTH)
    ids, scores, confidence = answers(system.model, system.data)
    np.testing.assert_array_equal(np.asarray(ids)[system.asked], expected_ids)
    np.testing.assert_allclose(np.asarray(scores)[system.asked], expected_scores, atol=1e-4)
    product = np.exp(expected_scores.sum(axis=1))
    np.testing.assert_allclose(confidence[system.asked], product, rtol=1e-4)
    assert not np.any(ids[~system.asked])
    ended = np.any(expected_ids == 1, axis=1)
    assert ended.any()
    assert not ended.all()  # both ways to stop
