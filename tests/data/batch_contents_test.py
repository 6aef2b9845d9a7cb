"""What the arrays of a batch hold: shapes and padding, augmentation, what is cut or left out."""

import dataclasses
import re

import chex
import numpy as np
import pytest

from moemoe_jax.data.config import AugmentConfig
from moemoe_jax.data.questions import examples_of
from moemoe_jax.data.records import Question
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.errors import UserError
from moemoe_jax.files import shown
from tests.data.products import (
    AUGMENT,
    COLOURS,
    ListSource,
    asked,
    contexts,
    evaluate,
    make_config,
    png,
    product,
    products,
    take,
    train,
)


def test_shapes_types_and_padding_of_every_array(tokenizer):
    records = [
        product(0, attributes={"colour": "red", "fit": None}),
        product(1, sources={"title": "blue"}, product_type=None),
        product(2, sources={"image": png()}, product_type=None),
    ]
    ((batch, meta),) = evaluate(tokenizer, ListSource(records), questions_per_product=4)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        batch,
        {
            "question_ids": np.zeros((4, 60), np.int32),
            "question_index": np.zeros((4, 4), np.int32),
            "question_valid": np.zeros((4, 4), bool),
            "answer_ids": np.zeros((4, 4, 8), np.int32),
            "sources": {
                "image": np.zeros((4, 16, 16, 3), np.uint8),
                "text": np.zeros((4, 60), np.int32),
            },
            "source_valid": {"image": np.zeros(4, bool), "text": np.zeros(4, bool)},
        },
    )
    # colour, fit, sleeve, size: each once in the table, in the order of first use.
    assert [tokenizer.decode(row) for row in batch["question_ids"]] == [
        "colour", "fit", "sleeve", "size",
    ]  # fmt: skip
    np.testing.assert_array_equal(batch["question_valid"].sum(1), [2, 4, 4, 0])
    np.testing.assert_array_equal(
        batch["question_index"][:3], [[0, 1, 0, 0], [0, 2, 3, 1], [0, 2, 3, 1]]
    )
    assert tokenizer.decode(batch["answer_ids"][0, 1]) == "<none>"
    assert (batch["answer_ids"][~batch["question_valid"]] == 0).all()
    np.testing.assert_array_equal(batch["source_valid"]["image"], [True, False, True, False])
    np.testing.assert_array_equal(batch["source_valid"]["text"], [True, True, False, False])
    # A missing text is a lone </s>, a missing image the mean colour.
    np.testing.assert_array_equal(batch["sources"]["text"][2:], [[1] + [0] * 59] * 2)
    mean = np.rint(np.array([0.485, 0.456, 0.406]) * 255)
    np.testing.assert_array_equal(batch["sources"]["image"][1], np.broadcast_to(mean, (16, 16, 3)))
    # Every token row: tokens, one </s>, pads.
    for rows in (
        batch["sources"]["text"],
        batch["question_ids"],
        batch["answer_ids"][batch["question_valid"]],
    ):
        ends = (rows == 1).argmax(1)
        np.testing.assert_array_equal((rows == 1).sum(1), 1)
        np.testing.assert_array_equal(np.arange(rows.shape[1]) > ends[:, None], rows == 0)
    assert [len(row) for row in meta] == [2, 4, 4, 0]
    assert meta[0][0].answers == ("red",) and meta[0][1].null


def test_hidden_answers_leave_the_text_in_training_and_evaluation(tokenizer):
    for batch in (
        next(train(tokenizer, hide_answer_fraction=1.0)),
        next(iter(evaluate(tokenizer, hide_answer_fraction=1.0)))[0],
        next(train(tokenizer, augment=AugmentConfig(hide_probability=1.0))),
    ):
        for text in contexts(tokenizer, batch):
            assert text == "product type: shirt title: shirt number"
    for text in contexts(tokenizer, next(train(tokenizer))):
        assert any(colour in text for colour in COLOURS)
    # Evaluation takes no part in augmentation.
    plain = [batch for batch, _ in evaluate(tokenizer)]
    chex.assert_trees_all_equal([b for b, _ in evaluate(tokenizer, augment=AUGMENT)], plain)


def test_augmentation_changes_text_and_images_but_never_takes_all_sources(tokenizer):
    augment = AugmentConfig(word_dropout=0.5, brightness=0.5)
    sources = tuple(dataclasses.replace(one, dropout=0.9) for one in make_config().sources)
    lengths = set()
    for batch in take(train(tokenizer, augment=augment, sources=sources), 10):
        valid = np.stack(list(batch["source_valid"].values()))
        assert valid.any(0).all() and not valid.all()
        lengths.update(len(text.split()) for text in contexts(tokenizer, batch))
    assert len(lengths) > 3


def test_each_source_is_dropped_as_often_as_it_says(tokenizer):
    # Only the text is dropped, and never in evaluation.
    sources = tuple(
        dataclasses.replace(one, dropout=0.5 if one.kind == "text" else 0.0)
        for one in make_config().sources
    )
    batches = take(train(tokenizer, sources=sources), 50)
    there = {
        name: np.mean([b["source_valid"][name] for b in batches]) for name in ("text", "image")
    }
    assert there["image"] == 1.0
    assert 0.4 < there["text"] < 0.6  # of 200
    for batch, meta in evaluate(tokenizer, sources=sources):
        asked = [bool(examples) for examples in meta]
        np.testing.assert_array_equal(batch["source_valid"]["text"], asked)


def test_a_text_that_is_dropped_takes_what_it_told_with_it(tokenizer):
    # "red shirt number 4" tells colour and size; not the fit, and not that there is no sleeve.
    untold = tuple(
        dataclasses.replace(one, dropout=0.5, dropout_asks="untold") if one.kind == "text" else one
        for one in make_config().sources
    )
    questions = {True: set(), False: set()}
    for batch in take(train(tokenizer, sources=untold, questions_per_product=4), 20):
        assert batch["question_valid"].any(1).all()
        for row, question, _ in asked(tokenizer, batch):
            questions[bool(batch["source_valid"]["text"][row])].add(question)
    assert questions == {True: {"colour", "sleeve", "size", "fit"}, False: {"sleeve", "fit"}}


def test_a_text_that_tells_all_that_is_asked_is_not_dropped(tokenizer):
    untold = tuple(
        dataclasses.replace(one, dropout=0.9, dropout_asks="untold") if one.kind == "text" else one
        for one in make_config().sources
    )
    for batch in take(train(tokenizer, sources=untold, attributes=("colour",)), 5):
        assert batch["source_valid"]["text"].all() and batch["question_valid"].any(1).all()


def test_what_is_too_long_is_cut_and_counted_once_and_a_question_told_at_once(tokenizer, caplog):
    long, answer = "which " * 40, " ".join(["a very long and winding answer"] * 3)
    record = product(
        0,
        sources={"title": "many words " * 30},
        attributes={"colour": answer},
        questions=(Question(long, ("yes",)),),
    )
    with caplog.at_level("WARNING", logger="absl"):
        iterator = train(tokenizer, source=ListSource([record]), products_per_batch=1)
    asked, told = (len(tokenizer.encode(text, 1000)[0]) for text in (long, answer))
    assert caplog.messages == [
        f"questions that are cut at data.text_length=60 tokens: 1; the longest has {asked}: "
        f"{shown(long)}; --config.data.text_length={asked} cuts none",
        f"answers that are cut at data.answer_length=8 tokens: 1; the longest has {told}: "
        f"{shown(answer)}; --config.data.answer_length={told} cuts none",
    ]
    for batch in take(iterator, 3):
        assert batch["sources"]["text"][0, -1] == 1
        assert sorted(batch["question_ids"][:, -1]) == [0, 1]
        assert sorted(batch["answer_ids"][0, :, -1]) == [0, 0, 1]
    assert iterator.notes.lines() == [
        f"note: answer truncated (data.answer_length=8): 1, such as {shown(f'colour: {answer}')}",
        f"note: question truncated (data.text_length=60): 1, such as {shown(long)}",
        "note: source 'text' truncated (data.text_length=60): 1, such as record 'p0'",
    ]


def test_answers_are_padded_to_the_longest_that_is_learnt(tokenizer):
    lengths = [
        len(tokenizer.encode(example.answers[0] if example.answers else "<none>", 99)[0])
        for number in range(10)
        for example in examples_of(product(number), make_config())
    ]
    wide, cut = (
        take(train(tokenizer, answer_length=length), 6) for length in (99, min(lengths) + 1)
    )
    assert {batch["answer_ids"].shape[-1] for batch in wide} == {max(lengths)}
    assert {batch["answer_ids"].shape[-1] for batch in cut} == {min(lengths) + 1}


class _Ascii:
    """A backend that has a piece for every word of ASCII, and no other."""

    size = 50

    def encode(self, text):
        return [5 if word.isascii() else 2 for word in text.split()]

    def decode(self, ids):
        return " ".join("Red" for _ in ids)


def test_an_answer_that_no_model_can_write_is_told():
    colours = ("red", "r\u00e9d", None)
    records = [product(n, attributes={"colour": colour}) for n, colour in enumerate(colours)]
    iterator = train(Tokenizer(_Ascii()), source=ListSource(records), products_per_batch=3)
    next(iterator)
    (line,) = iterator.notes.lines()
    told = "note: answer that the tokenizer changes, .*: 1, such as 'colour: réd', .* back as ''"
    assert re.fullmatch(told, line)


def test_the_question_can_stand_in_front_of_the_context(tokenizer):
    changes = {"context_includes_question": True, "questions_per_product": 1}
    batches = evaluate(tokenizer, products(2), **changes)
    texts = [text for batch, _ in batches for text in contexts(tokenizer, batch)]
    assert texts[0] == "colour product type: shirt title: red shirt number 0"
    assert texts[1] == "sleeve product type: shirt title: red shirt number 0"
    long = ListSource([product(0, sources={"title": "many words " * 30})])
    batches = evaluate(tokenizer, long, **changes)
    for batch, _ in batches:
        assert (batch["sources"]["text"][:, -1] == 1).all()
        assert contexts(tokenizer, batch)[0].startswith("colour product type")
    assert batches.notes.counts() == {"source 'text' truncated (data.text_length=60)": 1}


@pytest.mark.parametrize("remove", [(), ("text",)])
def test_the_question_in_the_context_does_not_go_with_the_text(tokenizer, remove):
    texts = {"title": "red shirt"} if remove else {}
    record = product(0, sources={**texts, "image": png()}, product_type=None)
    changes = {"context_includes_question": True, "questions_per_product": 1}
    ((batch, _),) = evaluate(tokenizer, ListSource([record]), remove, **changes)
    assert contexts(tokenizer, batch) == ["colour", "sleeve", "size", "fit"]
    assert batch["source_valid"]["text"].all() and batch["source_valid"]["image"].all()


def test_bad_images_are_rejected_and_the_product_keeps_its_other_sources(tokenizer, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(png()[:80])
    title = {"title": "red shirt"}
    records = [
        product(0, sources={**title, "image": tmp_path / "text.jpg"}),
        product(1, sources={**title, "image": tmp_path / "cut.png"}),
        product(2, sources={**title, "image": b"nothing"}),
        product(3, sources={**title, "image": (tmp_path / "text.jpg", png())}),
        product(4, sources={"image": tmp_path / "none.jpg"}, product_type=None),
    ]
    batches = evaluate(
        tokenizer, ListSource(records), products_per_batch=5, questions_per_product=4
    )
    for _ in range(2):
        ((batch, meta),) = batches
    np.testing.assert_array_equal(batch["source_valid"]["image"], [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(batch["source_valid"]["text"], [1, 1, 1, 1, 0])
    np.testing.assert_array_equal(batch["question_valid"].sum(1), [4, 4, 4, 4, 0])
    assert meta[4] == ()
    # Once for each record, also in a second pass: the first and the fourth share a file.
    assert dict(batches.rejects.reasons) == {
        "not an image": 3, "unreadable image": 1, "image not found": 1, "no source": 1,
    }  # fmt: skip
    with pytest.raises(UserError, match="were rejected"):
        iterator = train(tokenizer, source=ListSource(records), max_reject_fraction=0.3)
        take(iterator, 3)


def test_the_question_table_is_as_small_as_the_data_allow(tokenizer):
    # 4 products * 3 questions, but only 4 different questions.
    assert next(train(tokenizer))["question_ids"].shape == (4, 60)
    assert next(train(tokenizer, question_length=12))["question_ids"].shape == (4, 12)
    records = [product(i, questions=(Question(f"What is {i}?", ("x",)),)) for i in range(9)]
    source = ListSource(records)
    assert train(tokenizer, source=source).rows == 12  # at most P * Q
    assert train(tokenizer, source=source, distinct_questions=20).rows == 20
    assert next(train(tokenizer, distinct_questions=3))["question_ids"].shape == (3, 60)
