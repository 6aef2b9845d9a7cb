import dataclasses

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

    def decode(self, ids):
        return " " + " ".join(map(str, ids)) + " "


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
def answered():
    """Two batches of 4 products x 3 questions, the model, and what the predictor says of them."""
    model = random_model(MODEL, seed=4)  # some answers end at once
    graph, params = nnx.split(model)
    halved = lambda confidence, attributes: confidence / 2  # noqa: E731
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    predictor = Predictor(graph, SETTINGS, Numbers(), mesh, name="tiny", calibration=halved)
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


def test_to_say_nothing_is_to_abstain(answered):
    *_, answers = answered
    assert sum(answer.answer is None for answer in answers) == 3
    assert all(answer.answer is None or answer.answer[0] != " " for answer in answers)  # stripped


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
