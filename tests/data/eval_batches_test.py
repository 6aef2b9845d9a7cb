"""Evaluation: every question once, in order, with sources taken away."""

import chex
import jax
import numpy as np
import pytest

from moemoe_jax.data.eval_batches import eval_batches
from moemoe_jax.data.records import Question
from moemoe_jax.data.splits import SplitSource
from moemoe_jax.errors import UserError
from tests.data.products import ListSource, evaluate, make_config, png, product, products


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


@pytest.mark.parametrize(("more", "same"), [(0, True), (8, True), (9, False)])
def test_batches_share_one_table_where_it_has_room_for_all_questions(tokenizer, more, same):
    source = products(7)
    own = [Question(f"question {number}?") for number in range(more)]
    source.records[5] = product(5, questions=tuple(own))
    settings = {"questions_per_product": 3, "threads": 2}  # 4 rows a batch: room for 12 questions
    usual = list(evaluate(tokenizer, source, **settings))
    batches = list(evaluate(tokenizer, source, one_table=True, **settings))
    tables = {batch["question_ids"].tobytes() for batch, _ in batches}
    assert (len(tables) == 1) == same
    for (batch, meta), (other, _) in zip(batches, usual, strict=True):
        assert batch["question_ids"].shape == (min(4 + more, 12), 60)
        asked = batch["question_ids"][batch["question_index"]][batch["question_valid"]]
        assert [tokenizer.decode(ids) for ids in asked] == [e.question for r in meta for e in r]
        theirs = other["question_ids"][other["question_index"]][other["question_valid"]]
        np.testing.assert_array_equal(asked, theirs)


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


def test_of_several_processes_each_knows_all_questions_of_an_evaluation(tokenizer):
    source = products(6)
    # The last has no readable source, which only the process that makes its row finds.
    broken = product(6, sources={"image": b"no image"}, product_type=None)
    source.records.append(broken)
    whole = list(evaluate(tokenizer, source))
    for rows in [(0, 1), (2, 3)]:
        for (part, told), (batch, meta) in zip(
            evaluate(tokenizer, source, rows=rows), whole, strict=True
        ):
            mine = jax.tree.map(lambda array: array[list(rows)], batch)  # noqa: B023
            chex.assert_trees_all_equal(part, mine | {"question_ids": batch["question_ids"]})
            # `question_valid`, put together from all processes, has the last word.
            asked = [
                tuple(e for e, valid in zip(row, ok, strict=False) if valid)
                for row, ok in zip(told, batch["question_valid"], strict=True)
            ]
            assert asked == meta
            assert [told[row] for row in rows] == [meta[row] for row in rows]


def test_a_split_without_a_record_is_told_with_what_to_do(tokenizer):
    empty = SplitSource(products(3), "val", {"val": 0.01})
    with pytest.raises(UserError, match=r"\[val\] has no record.*data\.val_fraction.*to 0"):
        eval_batches(empty, tokenizer, make_config())
