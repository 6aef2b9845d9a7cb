"""Beam search against transformers' `generate`, and what it shares among beams."""

import dataclasses
import functools
import itertools

import chex
from flax import nnx
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from moemoe_jax.inference.beam import beam_search, best_answers
from moemoe_jax.inference.decoding import END, decoded, greedy
from moemoe_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from tests.models.tiny import MIXTURE, QUICK, batch, random_model
from tests.nn.torch_t5 import FLAVOURS, TINY, ids, torch_model, torch_name

# Few words, so that some answers end early; a row that is full while another goes on.
FEW = dataclasses.replace(TINY, vocab_size=8)
LENGTHS = (9, 4, 7, 2, 6)  # of the texts, in tokens


def text_model(config, theirs):
    """Our text-to-text T5 with the weights of a PyTorch one."""
    plain = Seq2Seq(Seq2SeqConfig(dataclasses.replace(config, scan_layers=False)), rngs=nnx.Rngs(0))
    renamed = {"embedding": "embed", "lm_head": "head"}
    tensors = dict(theirs.named_parameters())

    def value(path, variable):
        name, transposed = torch_name((renamed.get(path[0], path[0]), *path[1:]))
        array = tensors[name].detach().numpy()
        return variable.replace(jnp.asarray(array.T if transposed else array))

    nnx.update(plain, nnx.map_state(value, nnx.state(plain)))
    if not config.scan_layers:
        return plain
    scanned = Seq2Seq(Seq2SeqConfig(config), rngs=nnx.Rngs(0))
    for side in ("encoder", "decoder"):
        ours, flat = getattr(scanned, side), getattr(plain, side)
        ours.stack.set_layer_states(flat.stack.layer_states())
        nnx.update(ours.final_norm, nnx.state(flat.final_norm))
        nnx.update(ours.relative_bias, nnx.state(flat.relative_bias))
    nnx.update(scanned.embedding, nnx.state(plain.embedding))
    return scanned


def generate(model, texts, length, **options):
    """Our answers to texts [B, K]: the beams, [B, N, ...]."""
    graph, params = nnx.split(model)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, texts):
        model = nnx.merge(graph, params)
        fused = model.fuse(model.encode(texts), texts)
        return best_answers(model, fused, None, jnp.ones((len(texts), 1), bool), length, **options)

    return jax.tree.map(lambda a: np.asarray(a)[:, 0], run(params, texts))


def hugging_face(theirs, texts, length, *, beams, length_penalty=1.0, early_stopping="false"):
    """The ids [B, N, L] without the start token, and the scores [B, N], of transformers."""
    given = torch.from_numpy(texts).long()
    made = theirs.generate(
        input_ids=given,
        attention_mask=given != 0,
        max_new_tokens=length,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=length_penalty,
        early_stopping={"true": True, "false": False}.get(early_stopping, early_stopping),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = made.sequences[:, 1:].numpy()
    found = np.pad(found, ((0, 0), (0, length - found.shape[1])))
    found[np.cumsum(found == END, axis=-1) - (found == END) > 0] = 0  # it fills up with </s>
    shape = (len(texts), beams)
    return found.reshape(*shape, length), made.sequences_scores.numpy().reshape(shape)


def agree(config, length, seed=0, **options):
    """Asserts that both give the same beams and scores; returns ours."""
    theirs = torch_model(config, seed)
    texts = ids((len(LENGTHS), max(LENGTHS)), LENGTHS, seed, config.vocab_size)
    ours = generate(text_model(config, theirs), texts, length, **options)
    their_ids, their_scores = hugging_face(theirs, texts, length, **options)
    np.testing.assert_array_equal(ours.ids, their_ids)
    np.testing.assert_allclose(ours.scores, their_scores, atol=2e-5, rtol=1e-5)
    return ours


@pytest.mark.parametrize(
    ("flavour", "seed", "length", "options"),  # seeds with which some answers end, others do not
    [
        ("t5", 7, 8, {"beams": 4}),
        ("t5", 2, 12, {"beams": 3, "length_penalty": 0.0, "early_stopping": "true"}),
        ("flan", 6, 6, {"beams": 2, "length_penalty": 2.0, "early_stopping": "never"}),
        ("umt5", 3, 10, {"beams": 4, "length_penalty": -1.0, "early_stopping": "never"}),
    ],
)
def test_beams_and_scores_are_those_of_transformers(flavour, seed, length, options):
    config = dataclasses.replace(FLAVOURS[flavour], vocab_size=FEW.vocab_size)
    ours = agree(config, length, seed, **options)
    ends = (ours.ids == END).any(axis=-1)
    assert ends.any() and not ends.all()
    # What each token adds is what the score is made of.
    counts = np.asarray(decoded(ours.ids, np.ones(ours.ids.shape[:2], bool)))
    penalty = counts.sum(axis=-1).astype(np.float32) ** options.get("length_penalty", 1.0)
    np.testing.assert_allclose(ours.scores, ours.log_probs.sum(axis=-1) / penalty, rtol=1e-5)
    assert not ours.log_probs[~counts].any()


# With the test above, every way to stop meets every kind of penalty; the drill below has all.
@pytest.mark.parametrize(
    ("early_stopping", "length_penalty", "beams"),
    [
        ("true", -1.0, 2),
        ("true", 1.0, 4),
        ("true", 2.0, 3),
        ("false", -1.0, 3),
        ("false", 0.0, 4),
        ("false", 2.0, 2),
        ("never", 0.0, 2),
        ("never", 1.0, 3),
    ],
)
def test_all_ways_to_stop_agree_with_transformers(early_stopping, length_penalty, beams):
    options = {"early_stopping": early_stopping, "length_penalty": length_penalty}
    agree(FEW, 8, seed=7, beams=beams, **options)


@pytest.mark.drill
def test_beams_and_scores_over_all_settings():
    count = 0
    for length, beams, penalty, early in itertools.product(
        (3, 8, 16), (2, 5), (-1.0, 0.0, 0.6, 1.0, 2.0), ("true", "false", "never")
    ):
        for seed in range(2):
            options = {"beams": beams, "length_penalty": penalty, "early_stopping": early}
            agree(FEW, length, seed, **options)
            count += 1
    print(f"\nsettings x weights that agree with transformers: {count} of {count}")


def test_scanned_layers_reorder_their_caches_as_well():
    theirs = torch_model(FEW)
    texts = ids((len(LENGTHS), max(LENGTHS)), LENGTHS, 0, FEW.vocab_size)
    scanned = dataclasses.replace(FEW, scan_layers=True)
    flat, scan = (
        generate(text_model(config, theirs), texts, 8, beams=4) for config in (FEW, scanned)
    )
    chex.assert_trees_all_equal(flat.ids, scan.ids)
    chex.assert_trees_all_close(flat.scores, scan.scores, atol=1e-5)


# --- MoEMoE: several questions a product ---------------------------------------------------------

TEXT = dataclasses.replace(MIXTURE.text, vocab_size=8, tie_word_embeddings=False)
SHARED = dataclasses.replace(MIXTURE, text=TEXT, question_start=True)
LITERAL = dataclasses.replace(SHARED, fusion=dataclasses.replace(SHARED.fusion, path="literal"))
LENGTH, BEAMS = 6, 3


def answered(config, data, **options):
    """Beams of a MoEMoE with random weights, and the answers of `greedy`."""
    graph, params = nnx.split(random_model(config, seed=10))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, data):
        model = nnx.merge(graph, params)
        question, sources, _ = model.encode(data)
        fused = model.fuse(question, data["question_index"], sources, model.present(data))
        vectors = model.question_vectors(question, data["question_index"])
        given = (model, fused, vectors, data["question_valid"], LENGTH)
        return best_answers(*given, **options), greedy(*given)

    return jax.tree.map(np.asarray, run(params, data))


@pytest.fixture(scope="module")
def shared():
    data = batch(SHARED, products=3, questions=3)
    return data, *answered(SHARED, data, beams=BEAMS, early_stopping="never")


def test_the_literal_path_gives_the_same_beams(shared):
    data, beams, _ = shared
    literal, _ = answered(LITERAL, data, beams=BEAMS, early_stopping="never")
    chex.assert_trees_all_equal(beams.ids, literal.ids)
    chex.assert_trees_all_close(beams.scores, literal.scores, atol=1e-4)


def test_beams_are_sorted_differ_and_the_best_is_no_worse_than_greedy(shared):
    data, beams, (_, log_probs) = shared
    asked = data["question_valid"]
    assert np.all(np.diff(beams.scores[asked], axis=-1) <= 0)
    for row in beams.ids[asked]:
        assert len({tuple(answer) for answer in row}) == BEAMS
    assert not beams.ids[~asked].any()
    assert not beams.scores[~asked].any()
    one, ids_and_log_probs = answered(SHARED, data, beams=1)
    chex.assert_trees_all_equal(one.ids[:, :, 0], ids_and_log_probs[0])
    chex.assert_trees_all_equal(one.log_probs[:, :, 0], ids_and_log_probs[1])
    tokens = np.asarray(decoded(one.ids[:, :, 0], asked)).sum(axis=-1)
    likelihood = log_probs.sum(axis=-1)[asked] / tokens[asked]
    chex.assert_trees_all_close(one.scores[..., 0][asked], likelihood, atol=1e-6)
    assert np.mean(beams.scores[..., 0][asked] >= likelihood - 1e-6) > 0.8


def test_the_projected_sources_are_not_copied_for_the_beams():
    data = batch(SHARED, products=3, questions=3)
    graph, params = nnx.split(random_model(SHARED))

    def run(params, data, beams):
        model = nnx.merge(graph, params)
        question, sources, _ = model.encode(data)
        fused = model.fuse(question, data["question_index"], sources, model.present(data))
        vectors = model.question_vectors(question, data["question_index"])
        return beam_search(model, fused, vectors, data["question_valid"], LENGTH, beams=beams)

    keys = (TEXT.num_heads, TEXT.d_kv, len(SHARED.sources) * SHARED.text_length)
    shapes = [
        value.aval.shape
        for beams in (2, 5)
        for value in _values(jax.make_jaxpr(lambda p, d, b=beams: run(p, d, b))(params, data).jaxpr)
        if getattr(value.aval, "shape", ())[-3:] == keys
    ]
    assert shapes
    assert {shape[0] for shape in shapes} == {3}  # products


def _values(jaxpr):
    """All values of a program and of the programs inside it."""
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _values(inner)
