import dataclasses
import threading
import time
import weakref

import chex
from flax import nnx
import jax
import numpy as np
import pytest

from moemoe_jax.data.records import Question
from moemoe_jax.errors import UserError
from moemoe_jax.inference.beam import best_answers
from moemoe_jax.inference.buckets import (
    batch_sizes,
    padding_is_read,
    question_tables,
    text_lengths,
)
from moemoe_jax.inference.config import AnswerConfig
from moemoe_jax.inference.stream import ahead, answer_windows
from moemoe_jax.models.config import MoELayers
from moemoe_jax.nn.moe import MoEConfig
from tests.inference.numbers import ANSWER, ASK, MODEL, Records, predictor, stream, weights
from tests.models.tiny import QUICK, WITH_IMAGE, batch, random_model


def test_ahead_keeps_the_order_and_its_distance():
    made, lock = [], threading.Lock()

    def make(item):
        with lock:
            made.append(item)
        return -item

    results = ahead(make, range(20), threads=3, depth=4)
    taken = []
    for result in results:
        taken.append(result)
        time.sleep(0.002)
        assert len(made) <= len(taken) + 4
    assert taken == [-i for i in range(20)]


def test_what_fails_ahead_fails_in_the_caller():
    def fail(item):
        if item == 2:
            raise UserError("mend the data")
        return item

    with pytest.raises(UserError, match="mend the data"):
        list(ahead(fail, range(5), threads=2, depth=3))


def test_sizes_by_hand():
    assert batch_sizes(64, 1) == (1, 4, 16, 64)
    assert batch_sizes(64, 8) == (8, 16, 64)
    assert batch_sizes(5, 1) == (1, 2, 5)
    assert question_tables(100, 30) == (30, 60, 100)
    assert question_tables(8, 50) == (8,)
    assert text_lengths(MODEL, 3) == (8, 16, 32)
    assert text_lengths(MODEL, 1) == (32,)


def changed(model, **fusion):
    return dataclasses.replace(model, fusion=dataclasses.replace(model.fusion, **fusion))


@pytest.mark.parametrize(
    ("fusion", "with_image", "exact"),
    [
        ({"padding": "zero"}, True, True),
        ({"padding": "zero", "gate": "cross", "mask": "union"}, True, True),
        ({"padding": "read", "mask": "ones"}, False, False),  # the paper, to the letter
        ({"padding": "read", "mask": "context"}, True, True),
        ({"padding": "read", "mask": "union"}, False, True),
        ({"padding": "read", "mask": "union"}, True, False),
        ({"padding": "read", "mask": "context", "gate": "cross"}, False, False),
    ],
)
def test_lengths_are_used_where_padding_changes_nothing(fusion, with_image, exact):
    model = changed(WITH_IMAGE if with_image else MODEL, **fusion)
    assert (padding_is_read(model) == "") == exact
    assert (len(text_lengths(model, 2)) == 2) == exact


def test_experts_of_a_capacity_need_one_length():
    model = dataclasses.replace(
        MODEL, moe=MoEConfig(capacity_factor=1.0), moe_layers=MoELayers(context_encoder="all")
    )
    assert "capacity" in padding_is_read(model)


@pytest.mark.parametrize(
    "model",
    [
        changed(WITH_IMAGE, padding="zero"),
        changed(MODEL, padding="read", mask="context", gate_norm="softmax"),
        changed(MODEL, padding="read", mask="ones"),
    ],
)
def test_whether_answers_depend_on_how_far_texts_are_padded(model):
    data = batch(model)
    short = model.text_length // 2
    for name, value in data["sources"].items():
        if value.ndim == 2:
            value[:, short - 1 :] = 0
            value[:, short - 2] = 1
            data["sources"][name] = value
    cut = {n: v[:, :short] if v.ndim == 2 else v for n, v in data["sources"].items()}
    graph, params = nnx.split(random_model(model, seed=4))

    def answer(params, data):
        model = nnx.merge(graph, params)
        index = data["question_index"]
        question, sources, _ = model.encode(data)
        fused = model.fuse(question, index, sources, model.present(data))
        vectors = model.question_vectors(question, index)
        beams = best_answers(model, fused, vectors, data["question_valid"], 4, beams=2)
        return beams.ids, beams.scores, fused.shares

    run = jax.jit(answer, compiler_options=QUICK)
    whole, less = run(params, data), run(params, data | {"sources": cut})
    if padding_is_read(model):
        assert np.abs(np.asarray(whole[1] - less[1])).max() > 1e-3
    else:
        chex.assert_trees_all_equal(whole[0], less[0])
        chex.assert_trees_all_close(whole[1:], less[1:], atol=2e-5)


def test_own_questions_that_nobody_was_trained_on_are_noted():
    class Asking(Records):
        def __getitem__(self, index):
            own = (Question("4 5", ()), Question("6 7", ()), Question("8", ()))
            return dataclasses.replace(super().__getitem__(index), questions=own)

    def noted(trained):
        made = stream(Asking(3), threads=0, trained=trained)
        assert len(list(made.works([0]))) > 0
        return made._reader.notes.lines()

    what = "questions in words, beside the attributes that the model was trained on"
    assert noted({"4 5", "9"}) == [f"note: {what}: 6, such as '6 7'"]
    assert noted({"4 5", "6 7", "8"}) == noted(()) == []


@pytest.fixture(scope="module")
def answers():
    """The predictor, and what it answers to 47 records one window at a time."""
    model = predictor()

    def run(**changes):
        made = stream(Records(47), dataclasses.replace(ANSWER, **changes))
        found = answer_windows(made.works(range(made.windows)), model.begin, model.collect)
        windows = {window.number: window.answers for window in found}
        flat = [a for n in range(made.windows) for row in windows[n] for a in row]
        return made, flat

    return model, run


def test_every_question_is_answered_once_and_in_order(answers):
    _, run = answers
    made, got = run()
    assert [(a.id, a.attribute) for a in got] == [(f"r{i}", q) for i in range(47) for q in ASK]
    assert len({length for _, length, _ in made.shapes}) == 3
    assert made.windows == 5


def test_answers_do_not_depend_on_windows_and_lengths(answers):
    _, run = answers
    _, several = run()
    _, one = run(window=100, lengths=1)
    assert [a.answer for a in several] == [a.answer for a in one]
    for field in ("confidence", "calibrated"):
        pairs = [(getattr(a, field), getattr(b, field)) for a, b in zip(several, one, strict=True)]
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=1e-4)
    for a, b in zip(several, one, strict=True):
        assert a.source_weights == pytest.approx(b.source_weights, abs=3e-6)


class Various(Records):
    """Records that say something of what is asked, in either order, and some ask more."""

    def __getitem__(self, index):
        said = dict.fromkeys(ASK[:: 1 if index % 2 else -1], "4")
        own = (Question("4 5", ()),) if index % 4 == 3 else ()
        return dataclasses.replace(super().__getitem__(index), attributes=said, questions=own)


def tables_of(records, model=MODEL):
    """The tables of all batches of a stream, and what they ask."""
    made = stream(records, dataclasses.replace(ANSWER, window=5), threads=0, model=model)
    works = list(made.works(range(made.windows)))
    return [work.batch["question_ids"] for work in works], [
        {example.question for row in work.meta for example in row} for work in works
    ]


def ids(*questions):
    return [[int(token) for token in question.split()] + [1] for question in questions]


def said_by(table):
    return [[int(token) for token in row if token] for row in table]


def test_what_all_records_are_asked_comes_first_in_all_tables():
    tables, asked = tables_of(Various(20))
    for table, questions in zip(tables, asked, strict=True):
        others = ["4 5"] if "4 5" in questions else []
        assert [row for row in said_by(table) if row] == ids(*ASK, *others)
    assert len(tables) > 5
    assert len({table.tobytes() for table in tables}) == 2


def test_where_questions_compete_a_table_has_no_others():
    model = dataclasses.replace(
        MODEL, moe=MoEConfig(capacity_factor=1.0), moe_layers=MoELayers(question_encoder="all")
    )
    firsts = set()
    tables, asked = tables_of(Various(20), model)
    for table, questions in zip(tables, asked, strict=True):
        rows = [row for row in said_by(table) if row]
        assert sorted(rows) == sorted(ids(*questions))
        firsts.add(tuple(rows[0]))
    assert len(firsts) > 1  # as they come


def test_a_stream_encodes_its_questions_once(answers, monkeypatch):
    model, run = answers
    encoded, encode = [], model._encode
    monkeypatch.setattr(model, "_encode", lambda *given: encoded.append(1) or encode(*given))
    monkeypatch.setattr(model, "begin", model.starter((weights()[1],)))
    made, _ = run()
    assert made.windows == 5 and len(encoded) == 1


def test_there_are_as_many_programs_as_shapes_and_no_more_later(answers):
    model, run = answers
    made, first = run()
    programs = model.programs()
    assert len(made.shapes) <= made.most_shapes
    again, second = run()
    assert again.shapes == made.shapes
    assert model.programs() == programs
    assert first == second


def test_no_more_than_two_windows_are_in_memory(answers):
    model, _ = answers
    made = stream(Records(60))
    alive, most, lock = set(), [0], threading.Lock()
    read = made._rows_of

    def counted(index):
        rows = read(index)
        for row in rows:
            key = object()
            with lock:
                alive.add(key)
                most[0] = max(most[0], len(alive))
            weakref.finalize(row, alive.discard, key)
        return rows

    made._rows_of = counted
    for window in answer_windows(made.works(range(made.windows)), model.begin, model.collect):
        assert len(window.answers) == ANSWER.window
        del window
    assert ANSWER.window < most[0] <= 2 * ANSWER.window + 4
    assert not alive


def test_settings_that_cannot_be_are_refused():
    for change, message in (
        ({"alternatives": 2, "beams": 2}, "set answer.beams=3 or more"),
        ({"early_stopping": "maybe"}, "choose one of true, false, never"),
        ({"window": 0}, "answer.window must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            AnswerConfig(**change)
