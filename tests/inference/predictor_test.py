import dataclasses
import gc
import weakref

from flax import nnx
import jax
import numpy as np
import pytest

from moemoe_jax.data.config import DataConfig, SourceConfig
from moemoe_jax.data.questions import Example
from moemoe_jax.experiment import ExperimentConfig
from moemoe_jax.inference.config import AnswerConfig
from moemoe_jax.inference.decoding import END
from moemoe_jax.inference.predictor import Predictor
from moemoe_jax.parallel.mesh import MeshConfig, make_mesh
from tests.models.tiny import MIXTURE, batch, random_model

LENGTH = 6
MODEL = dataclasses.replace(
    MIXTURE,
    text=dataclasses.replace(MIXTURE.text, vocab_size=12, tie_word_embeddings=False),
)
SETTINGS = ExperimentConfig(
    model=MODEL,
    data=DataConfig(
        answer_length=LENGTH,
        sources=(
            SourceConfig("title", "text", ("title",)),
            SourceConfig("description", "text", ("description",)),
        ),
    ),
    answer=AnswerConfig(confidence="prod"),
)


class Numbers:
    """A tokenizer whose text is the ids."""

    def encode(self, text, length):
        return np.array([99, END]), False  # of "<none>"

    def decode(self, ids):
        return " " + " ".join(map(str, ids)) + " "


class Lossy:
    """A tokenizer with no piece for one of the characters of "<none>"."""

    def encode(self, text, length):
        return np.array([2, 7, END]), False

    def decode(self, ids):
        return " ".join(str(i) for i in ids if i != 2)


def meta(valid, number):
    """The examples of a batch: as many a product as it is asked."""
    return [
        tuple(
            Example(
                record_id=f"record {number}.{p}",
                attribute=None if q == 1 else f"attribute {q}",
                question=f"question {q}",
                answers=("red",),
                evidence="text",
                product_type="shirt",
            )
            for q in range(int(row.sum()))
        )
        for p, row in enumerate(valid)
    ]


@pytest.fixture(scope="module")
def predictor():
    graph, _ = nnx.split(random_model(MODEL))
    halved = lambda confidence, attributes: confidence / 2  # noqa: E731
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    return Predictor(graph, SETTINGS, Numbers(), mesh, name="tiny", calibration=halved)


@pytest.fixture(scope="module")
def answered(predictor):
    """Two batches of 4 products x 3 questions, the model, and what the predictor says of them."""
    model = random_model(MODEL, seed=4)  # some answers end at once
    _, params = nnx.split(model)
    batches = [batch(MODEL, seed=seed) for seed in (0, 1)]
    pairs = [(data, meta(data["question_valid"], n)) for n, data in enumerate(batches)]
    return model, pairs, list(predictor((params,), iter(pairs)))


def test_every_question_is_answered_in_order(answered):
    _, pairs, answers = answered
    examples = [example for _, products in pairs for product in products for example in product]
    assert len(examples) == len(answers) == 16  # of 24; the others are padding
    for example, answer in zip(examples, answers, strict=True):
        assert answer.id == example.record_id
        assert answer.question == example.question
        assert answer.attribute == (example.attribute or example.question)
        assert answer.golds == example.answers
        assert (answer.evidence, answer.product_type, answer.model) == ("text", "shirt", "tiny")
        assert answer.calibrated == pytest.approx(answer.confidence / 2)


def test_the_confidence_is_the_probability_of_what_is_said(answered):
    # Read what was said as the right answer: its likelihood is then the confidence.
    model, pairs, answers = answered
    graph, params = nnx.split(model)

    @jax.jit
    def forward(params, data):
        outputs = nnx.merge(graph, params)(data)
        return jax.nn.log_softmax(outputs.logits), outputs.source_weights

    said = iter(answers)
    lengths = []
    for data, products in pairs:
        rows = [(p, q) for p, product in enumerate(products) for q in range(len(product))]
        given = [next(said) for _ in rows]
        ids = np.zeros((*data["question_valid"].shape, LENGTH), np.int32)
        for row, answer in zip(rows, given, strict=True):
            tokens = [] if answer.answer is None else [int(t) for t in answer.answer.split(" ")]
            tokens = [*tokens, END][:LENGTH]
            ids[row][: len(tokens)] = tokens
            lengths.append(len(tokens))
        log_probs, weights = map(np.asarray, forward(params, data | {"answer_ids": ids}))
        picked = np.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0] * (ids != 0)
        for row, answer in zip(rows, given, strict=True):
            assert answer.confidence == pytest.approx(np.exp(picked[row].sum()), rel=1e-3)
            assert list(answer.source_weights) == ["title", "description"]
            np.testing.assert_allclose(
                list(answer.source_weights.values()), weights[row], atol=2e-6
            )
    assert len(set(lengths)) > 1


@pytest.fixture
def tables(predictor, monkeypatch):
    """The ids of every table that is encoded from here on."""
    encoded, encode = [], predictor._encode

    def count(params, ids):
        encoded.append(np.asarray(ids))
        return encode(params, ids)

    monkeypatch.setattr(predictor, "_encode", count)
    return encoded


def test_questions_are_encoded_once_a_stream_and_answers_are_the_same(predictor, answered, tables):
    model, pairs, _ = answered
    _, params = nnx.split(model)
    # Four batches of three products; the first three ask of one table, each of it in its own way.
    data = [batch(MODEL, seed=seed) for seed in range(4)]
    for other in data[1:3]:
        other["question_ids"] = data[0]["question_ids"]
    pairs = [(one, meta(one["question_valid"], n)) for n, one in enumerate(data)]
    kept = list(predictor((params,), pairs))
    assert len(tables) == 2
    np.testing.assert_array_equal(tables[0], data[0]["question_ids"])
    alone = [answer for pair in pairs for answer in predictor((params,), [pair])]
    assert len(tables) == 2 + 4
    assert kept == alone and len(kept) == 32


def test_encodings_are_of_the_parameters_of_the_moment_and_go_with_them(
    predictor, answered, tables
):
    model, pairs, answers = answered
    _, params = nnx.split(model)
    _, others = nnx.split(random_model(MODEL, seed=5))
    assert list(predictor((params,), pairs)) == answers
    assert list(predictor((others,), pairs)) != answers
    assert len(tables) == 4
    gone = weakref.ref(jax.tree.leaves(others["question_encoder"])[0])
    del others
    gc.collect()
    assert gone() is None


def test_without_a_question_encoder_none_is_encoded():
    fusion = dataclasses.replace(MODEL.fusion, gate="unit")
    config = dataclasses.replace(MODEL, question_encoder=False, fusion=fusion)
    graph, params = nnx.split(random_model(config, seed=4))
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    settings = dataclasses.replace(SETTINGS, model=config)
    predictor = Predictor(graph, settings, Numbers(), mesh)
    data = batch(config)
    answers = list(predictor((params,), [(data, meta(data["question_valid"], 0))]))
    assert len(answers) == 8
    assert predictor._encode._cache_size() == 0


def test_to_say_nothing_is_to_abstain(answered):
    *_, answers = answered
    assert sum(answer.answer is None for answer in answers) == 3
    assert all(answer.answer is None or answer.answer[0] != " " for answer in answers)  # stripped


def test_no_answer_is_known_by_what_its_tokens_say():
    graph, _ = nnx.split(random_model(MODEL))
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    predictor = Predictor(graph, SETTINGS, Lossy(), mesh)
    ids = np.array([[[[2, 7, 1]], [[7, 8, 1]]]])
    confidence, weights, asked = np.ones((1, 2, 1)), np.ones((1, 2, 2)), np.ones((1, 2), bool)
    said = predictor.collect((ids, confidence, weights, asked), meta(asked, 0))
    assert [answer.answer for answer in said] == [None, "7 8"]


def test_alternatives_say_each_text_once_the_likeliest_first():
    graph, _ = nnx.split(random_model(MODEL))
    answer = AnswerConfig(beams=5, alternatives=2)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    settings = dataclasses.replace(SETTINGS, answer=answer)
    predictor = Predictor(graph, settings, Numbers(), mesh)
    # Beams of one question: 5, 5 again (a padding token inside), nothing, 7, 8; </s> is 1.
    ids = np.array([[[[5, 1, 0], [0, 5, 1], [1, 0, 0], [7, 1, 0], [8, 1, 0]]]])
    confidence = np.array([[[0.5, 0.25, 0.125, 0.0625, 0.03125]]], np.float32)
    weights = np.full((1, 1, 2), 0.5)
    asked = np.ones((1, 1), bool)
    (said,) = predictor.collect((ids, confidence, weights, asked), meta(asked, 0))
    assert (said.answer, said.confidence) == ("5", 0.5)
    assert said.alternatives == ((None, 0.125), ("7", 0.0625))
    line = said.to_json()
    assert line["alternatives"][1] == {"answer": "7", "confidence": 0.0625}
