"""Which products and questions make which batch: the order, the epochs, resuming, the processes."""

from collections import Counter
import dataclasses
import json
import re

from absl import logging
import chex
import jax
import numpy as np
import pytest

from moemoe_jax.data.records import Question
from moemoe_jax.errors import UserError
from tests.data.products import (
    AUGMENT,
    ListSource,
    asked,
    make_config,
    png,
    product,
    take,
    train,
)


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


@pytest.mark.parametrize("shares", [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(0, 1, 3), (2, 3)]])
def test_the_rows_of_the_processes_are_the_global_batch(tokenizer, shares):
    # Text that is dropped takes questions along, which only who makes the row knows.
    sources = tuple(
        dataclasses.replace(one, dropout=0.5, dropout_asks="untold") if one.kind == "text" else one
        for one in make_config().sources
    )
    changes = {"augment": AUGMENT, "sources": sources, "questions_per_product": 1}
    whole = take(train(tokenizer, **changes), 4)
    assert len({batch["question_ids"].tobytes() for batch in whole}) > 1
    for rows in shares:
        parts = take(train(tokenizer, rows=rows, **changes), 4)
        for part, batch in zip(parts, whole, strict=True):
            table = batch["question_ids"]
            mine = jax.tree.map(lambda array: array[list(rows)], batch)  # noqa: B023
            chex.assert_trees_all_equal(part, mine | {"question_ids": table})


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


def test_a_small_table_has_the_products_of_a_batch_asked_the_same_questions(tokenizer):
    seen = Counter()
    batches = take(train(tokenizer, questions_per_product=3, distinct_questions=2), 60)
    for batch in batches:
        questions = {question for _, question, _ in asked(tokenizer, batch)}
        assert len(questions) == 2
        np.testing.assert_array_equal(batch["question_valid"], [[True, True, False]] * 4)
        seen.update(questions)
    # 60 * 2 draws of 4 attributes: 30 each.
    assert set(seen) == {"colour", "sleeve", "size", "fit"}
    assert min(seen.values()) > 17
    shares = [train(tokenizer, rows=rows, distinct_questions=2) for rows in ([0, 1], [2, 3])]
    whole = next(train(tokenizer, distinct_questions=2))
    for first, part in zip((0, 2), map(next, shares), strict=True):
        np.testing.assert_array_equal(part["question_ids"], whole["question_ids"])
        np.testing.assert_array_equal(
            part["question_index"], whole["question_index"][first : first + 2]
        )


def test_a_product_that_has_none_of_a_batch_s_questions_is_asked_nothing(tokenizer):
    own = [product(n, attributes={}, questions=(Question(f"{n}?", ("x",)),)) for n in range(4)]
    batch = next(train(tokenizer, source=ListSource(own), distinct_questions=1))
    np.testing.assert_array_equal(np.sort(batch["question_valid"].sum(1)), [0, 0, 0, 1])
    np.testing.assert_array_equal(batch["source_valid"]["text"], [True] * 4)


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
    misnamed = ListSource([product(0, sources={"titel": "red", "picture": "x"}, product_type=None)])
    with pytest.raises(
        UserError, match=r"no source.*reads .*title.*; the record has 'picture', 'ti"
    ):
        train(tokenizer, source=misnamed, max_reject_fraction=0.1)
    with pytest.raises(UserError, match="none of the 2 records has a question"):
        train(tokenizer, source=ListSource(records[1:3]))
    with pytest.raises(UserError, match="were rejected"):
        train(tokenizer, source=ListSource(records), max_reject_fraction=0.1)


def test_sources_that_nobody_reads_are_noted_where_one_that_is_read_is_missing(tokenizer):
    misspelt = {"titel": "red shirt", "image": png()}
    records = [product(0), product(1, sources=misspelt), product(2, sources={"title": "a shirt"})]
    notes = train(tokenizer, source=ListSource(records)).notes
    (line,) = [line for line in notes.lines() if "without source" in line]
    assert re.fullmatch(
        r"note: records without source 'text' \(.*title.*\), but with others: 1, "
        r"such as record 'p1' with 'titel', not read",
        line,
    )


def test_a_source_that_no_record_has_is_told(tokenizer, caplog):
    misspelt = [product(n, sources={"titel": "a shirt", "image": png()}) for n in range(2)]
    with caplog.at_level("WARNING", logger="absl"):
        train(tokenizer, source=ListSource([*misspelt, product(2)]))
        train(tokenizer, source=ListSource(misspelt))
    some, none = caplog.messages
    assert some.startswith("the records have sources that nobody reads: 'titel'; ")
    assert none.startswith("no record has source 'text' (title, ")
    assert none.endswith("), but others that data.sources.text.fields may name: 'titel'")


def test_a_text_is_not_taken_for_the_image_that_no_record_has(tokenizer, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        texts = {"title": "a shirt", "year": "2012"}
        train(tokenizer, source=ListSource([product(0, sources=texts)]), products_per_batch=1)
    (told,) = caplog.messages
    assert told.startswith("the records have sources that nobody reads: 'year'; data.sources.NAME")
    assert "image: image; text: " in told


def test_settings_about_attributes_that_no_record_has_are_told(tokenizer, monkeypatch):
    told = []
    monkeypatch.setattr(logging, "warning", lambda form, *values: told.append(form % values))
    templates = {"size": "how large?", "szie": "how large?"}
    train(tokenizer, attributes=("colour", "size", "feet"), question_templates=templates)
    assert told == [
        "data.attributes that no record has: feet",
        "data.question_templates that no record has: szie",
    ]


def test_a_cache_of_no_size_changes_nothing(tokenizer):
    small = take(train(tokenizer, cache_images_mib=0, cache_text_mib=0, augment=AUGMENT), 4)
    chex.assert_trees_all_equal(small, take(train(tokenizer, augment=AUGMENT), 4))
