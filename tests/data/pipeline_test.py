from collections import Counter
import dataclasses
import io
import json

import chex
import numpy as np
from PIL import Image
import pytest

from moemoe_jax.data.config import AugmentConfig, DataConfig
from moemoe_jax.data.examples import corpus
from moemoe_jax.data.pipeline import eval_batches, train_batches
from moemoe_jax.data.records import Question, Record
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.errors import UserError

COLOURS = ("red", "blue", "green", "black")


def png(seed=0, size=16):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class ListSource:
    """Records in a list."""

    splits = ()

    def __init__(self, records, name="list"):
        self.records, self.name = list(records), name

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def product(number, **changes):
    colour = COLOURS[number % 4]
    fields = {
        "id": f"p{number}",
        "sources": {"title": f"{colour} shirt number {number}", "image": png(number)},
        "product_type": "shirt",
        "attributes": {"colour": colour, "sleeve": None, "size": str(number), "fit": "slim"},
    }
    return Record(**{**fields, **changes})


def products(count=10):
    return ListSource(product(number) for number in range(count))


def make_config(**changes):
    defaults = {
        "text_length": 60,
        "answer_length": 8,
        "questions_per_product": 3,
        "products_per_batch": 4,
        "image_size": 16,
        "threads": 0,
        "max_reject_fraction": 1.0,
    }
    return DataConfig(**{**defaults, **changes})


AUGMENT = AugmentConfig(
    flip=True, crop_scale_min=0.5, brightness=0.2, contrast=0.2, word_dropout=0.2,
    hide_probability=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(corpus(products(), make_config()), 600)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def train(tokenizer, *, source=None, seed=0, start_step=0, process=(0, 1), **changes):
    index, count = process
    return train_batches(
        source or products(), tokenizer, make_config(**changes), seed, start_step,
        process_index=index, process_count=count,
    )  # fmt: skip


def evaluate(tokenizer, source=None, remove=(), ask=(), **changes):
    source = source or products()
    return eval_batches(source, tokenizer, make_config(**changes), remove, ask)


def asked(tokenizer, batch):
    """The (question, answer) texts of a batch, by row."""
    texts = []
    for p, q in zip(*np.nonzero(batch["question_valid"]), strict=True):
        question = tokenizer.decode(batch["question_ids"][batch["question_index"][p, q]])
        texts.append((int(p), question, tokenizer.decode(batch["answer_ids"][p, q])))
    return texts


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


def test_the_same_seed_gives_the_same_batches_for_any_number_of_threads(tokenizer):
    batches = [take(train(tokenizer, augment=AUGMENT, threads=threads), 7) for threads in (0, 1, 4)]
    chex.assert_trees_all_equal(*batches)
    other = take(train(tokenizer, augment=AUGMENT, seed=1), 1)[0]
    assert (other["sources"]["text"] != batches[0][0]["sources"]["text"]).any()


def test_a_run_continues_with_exactly_the_next_batch(tokenizer):
    unbroken = take(train(tokenizer, augment=AUGMENT), 9)
    fresh = take(train(tokenizer, augment=AUGMENT, start_step=5, threads=2), 4)
    chex.assert_trees_all_equal(fresh, unbroken[5:])
    iterator = train(tokenizer, augment=AUGMENT, threads=2)
    take(iterator, 5)
    state = json.loads(json.dumps(iterator.get_state()))
    take(iterator, 3)
    resumed = train(tokenizer, augment=AUGMENT, threads=1)
    resumed.set_state(state)
    assert resumed.get_state() == state
    chex.assert_trees_all_equal(take(resumed, 4), unbroken[5:])
    iterator.set_state(state)  # back, with batches made ahead in the buffer
    chex.assert_trees_all_equal(take(iterator, 1), unbroken[5:6])
    iterator.close()
    with pytest.raises(UserError, match="not the state"):
        resumed.set_state({"step": 1})
    with pytest.raises(UserError, match="step -1"):
        train(tokenizer, start_step=-1)


def test_the_slices_of_the_processes_are_the_global_batch(tokenizer):
    whole = take(train(tokenizer, augment=AUGMENT), 3)
    parts = [take(train(tokenizer, augment=AUGMENT, process=(i, 2)), 3) for i in range(2)]
    for step in range(3):
        joined = chex_concatenate(parts[0][step], parts[1][step])
        for batch in (joined, whole[step]):
            # Tables differ, what they say does not.
            batch["questions"] = batch.pop("question_ids")[batch.pop("question_index")]
            batch["questions"][~batch["question_valid"]] = 0
        chex.assert_trees_all_equal(joined, whole[step])
    with pytest.raises(UserError, match="does not divide among 3"):
        train(tokenizer, process=(0, 3))


def chex_concatenate(first, second):
    return {
        key: chex_concatenate(value, second[key])
        if isinstance(value, dict)
        else np.concatenate([value, second[key]])
        for key, value in first.items()
    }


def test_each_epoch_holds_every_product_once_in_a_new_order(tokenizer):
    iterator = train(tokenizer, products_per_batch=5, questions_per_product=4)
    assert iterator.steps_per_epoch == 2.0
    epochs = []
    for _ in range(3):
        sizes = [a for b in take(iterator, 2) for _, q, a in asked(tokenizer, b) if q == "size"]
        assert sorted(sizes) == [str(number) for number in range(10)]
        epochs.append(tuple(sizes))
    assert len(set(epochs)) == 3


def test_questions_are_sampled_without_repetition(tokenizer):
    seen = Counter()
    for batch in take(train(tokenizer, questions_per_product=2), 30):
        questions = asked(tokenizer, batch)
        assert len(questions) == len(set(questions)) == 8
        seen.update(question for _, question, _ in questions)
    # 30 * 4 * 2 draws of 4 attributes: 60 each.
    assert set(seen) == {"colour", "sleeve", "size", "fit"}
    assert min(seen.values()) > 35


def test_products_without_a_usable_question_are_left_out_and_counted(tokenizer):
    unknown = (Question("Its price?"),)
    records = [
        product(0),
        product(1, attributes={}),
        product(2, attributes={}, questions=unknown),
        product(3, sources={}, product_type=None),
    ]
    iterator = train(tokenizer, source=ListSource(records))
    assert iterator.products == 1
    assert iterator.notes.counts() == {
        "products without a question left out": 2,
        "questions without a known answer left out": 1,
    }
    assert dict(iterator.rejects.reasons) == {"no source": 1}
    with pytest.raises(UserError, match="none of the 2 records has a question"):
        train(tokenizer, source=ListSource(records[1:3]))
    with pytest.raises(UserError, match="were rejected"):
        train(tokenizer, source=ListSource(records), max_reject_fraction=0.1)


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_evaluation_asks_every_question_exactly_once_in_order(tokenizer, chunk):
    source = products(7)
    source.records[2] = product(2, questions=(Question("Its price?"),))
    batches = evaluate(tokenizer, source, questions_per_product=chunk, threads=2)
    found = []
    for batch, meta in batches:
        valid = batch["question_valid"]
        assert valid.shape == (4, chunk)
        np.testing.assert_array_equal(valid.sum(1), [len(row) for row in meta])
        for p, row in enumerate(meta):
            for q, example in enumerate(row):
                ids = batch["question_ids"][batch["question_index"][p, q]]
                assert tokenizer.decode(ids) == example.question
                target = example.answers[0] if example.answers else "<none>" if example.null else ""
                assert tokenizer.decode(batch["answer_ids"][p, q]) == target
                found.append((example.record_id, example.question))
    attributes = ("colour", "sleeve", "size", "fit")
    expected = [(r.id, a) for r in source.records for a in attributes]
    expected.insert(12, ("p2", "Its price?"))
    assert found == expected
    assert batches.questions == 29 and batches.products == 7
    assert len(batches) == len(list(batches))  # a second time, from the caches


def test_evaluation_can_ask_what_the_record_does_not_say(tokenizer):
    batches = evaluate(tokenizer, products(1), ask=("brand",), questions_per_product=5)
    ((batch, meta),) = batches
    assert [e.attribute for e in meta[0]] == ["colour", "sleeve", "size", "fit", "brand"]
    assert meta[0][4].answers is None
    assert (batch["answer_ids"][0, 4] == 0).all()


def test_a_source_can_be_removed_for_evaluation(tokenizer):
    (batch, meta), *_ = evaluate(tokenizer, remove=("image",))
    assert not batch["source_valid"]["image"].any()
    assert batch["source_valid"]["text"].all()
    assert len(np.unique(batch["sources"]["image"].reshape(-1, 3), axis=0)) == 1
    # A product that has nothing else keeps its questions.
    only = ListSource([product(0, sources={"image": png()}, product_type=None)])
    ((batch, meta),) = evaluate(tokenizer, only, remove=("image",), questions_per_product=4)
    assert batch["question_valid"][0].all() and len(meta[0]) == 4
    assert not batch["source_valid"]["image"].any() and not batch["source_valid"]["text"].any()
    with pytest.raises(UserError, match="cannot remove source 'video'"):
        evaluate(tokenizer, remove=("video",))
    with pytest.raises(UserError, match="keep at least one"):
        evaluate(tokenizer, remove=("image", "text"))


def contexts(tokenizer, batch):
    return [tokenizer.decode(row) for row in batch["sources"]["text"]]


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


def test_what_is_too_long_is_cut_and_counted_once(tokenizer):
    long = "which " * 40
    record = product(
        0,
        sources={"title": "many words " * 30},
        attributes={"colour": "a very long and winding answer " * 3},
        questions=(Question(long, ("yes",)),),
    )
    iterator = train(tokenizer, source=ListSource([record]), products_per_batch=1)
    for batch in take(iterator, 3):
        assert batch["sources"]["text"][0, -1] == 1
        assert sorted(batch["question_ids"][:, -1]) == [0, 1]
        assert sorted(batch["answer_ids"][0, :, -1]) == [0, 0, 1]
    assert iterator.notes.counts() == {
        "answer truncated": 1, "question truncated": 1, "source 'text' truncated": 1,
    }  # fmt: skip


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
    assert batches.notes.counts() == {"source 'text' truncated": 1}


def test_bad_images_are_rejected_once_and_the_product_keeps_its_other_sources(tokenizer, tmp_path):
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
    assert dict(batches.rejects.reasons) == {
        "not an image": 2, "unreadable image": 1, "image not found": 1, "no source": 1,
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
    with pytest.raises(UserError, match="can ask 12 different questions"):
        train(tokenizer, source=source, distinct_questions=8)


def test_a_cache_of_no_size_changes_nothing(tokenizer):
    small = take(train(tokenizer, cache_images_mib=0, cache_text_mib=0, augment=AUGMENT), 4)
    chex.assert_trees_all_equal(small, take(train(tokenizer, augment=AUGMENT), 4))
