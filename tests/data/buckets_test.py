"""Batches by length of text: which products come together, and that nothing else changes."""

from collections import Counter
import dataclasses
import json

import chex
import grain
import jax
import numpy as np
import pytest

from moemoe_jax.data.batching import text_tokens
from moemoe_jax.data.buckets import BatchOrder
from moemoe_jax.data.config import AugmentConfig
from moemoe_jax.data.tokenizer import Tokenizer
from tests.data.products import AUGMENT, ListSource, contexts, make_config, product, take, train

BUCKETS = {"text_length": 40, "text_buckets": (10, 20)}


def mixed(count=48):
    """Texts of about 5, 15 and 35 tokens, in turn."""
    words = (2, 8, 22)
    return ListSource(
        product(
            number,
            product_type=None,
            sources={"title": f"{number} " + "red shirt " * (words[number % 3] // 2)},
        )
        for number in range(count)
    )


def test_without_buckets_the_order_is_a_plain_shuffle():
    plain = grain.MapDataset.range(10).shuffle(seed=3).repeat(9, reseed_each_epoch=True).batch(4)
    order = BatchOrder(np.zeros(10, int), 4, seed=3)
    np.testing.assert_array_equal([order[step] for step in range(20)], list(plain)[:20])


def test_a_window_is_dealt_out_by_length():
    buckets = np.arange(400) % 3
    order, plain = BatchOrder(buckets, 8, 0), BatchOrder(np.zeros(400, int), 8, 0)
    for window in (0, 1, 5):
        steps = range(16 * window, 16 * (window + 1))
        batches = np.array([order[step] for step in steps])
        # The products are those that would come anyway; of 16 batches at most 2 hold two lengths.
        drawn = np.array([plain[step] for step in steps])
        assert sorted(batches.ravel()) == sorted(drawn.ravel())
        assert sum(len(set(buckets[batch])) > 1 for batch in batches) <= 2
        # Long ones do not always come last.
        assert (np.diff([buckets[batch].max() for batch in batches]) < 0).any()
    # In any order of asking, and again.
    np.testing.assert_array_equal(BatchOrder(buckets, 8, 0)[37], order[37])
    assert (BatchOrder(buckets, 8, 1)[37] != order[37]).any()


def test_few_products_come_once_an_epoch_all_the_same():
    order = BatchOrder(np.arange(12) % 2, 4, seed=5)
    for epoch in range(3):
        drawn = np.concatenate([order[3 * epoch + step] for step in range(3)])
        assert sorted(drawn) == list(range(12))


def test_a_batch_is_as_long_as_its_longest_text_needs(tokenizer):
    batches = take(train(tokenizer, source=mixed(), **BUCKETS), 24)
    lengths = Counter(map(text_tokens, batches))
    assert set(lengths) == {10, 20, 40} and min(lengths.values()) > 3
    whole = train(tokenizer, source=mixed(), text_length=40)
    texts = {text for batch in take(whole, 24) for text in contexts(tokenizer, batch)}
    for batch in batches:
        used = (batch["sources"]["text"] != 0).sum(axis=1)
        needed = min(length for length in (10, 20, 40) if length >= used.max())
        assert text_tokens(batch) == needed
        assert set(contexts(tokenizer, batch)) <= texts  # none is cut
        assert batch["question_ids"].shape[1] == 40  # K is what it was


HIDING = dataclasses.replace(AUGMENT, word_dropout=0.3, hide_probability=0.5)


def test_order_and_lengths_are_functions_of_seed_and_step(tokenizer):
    changes = {"source": mixed(), "augment": HIDING, **BUCKETS}
    whole = take(train(tokenizer, **changes), 20)
    chex.assert_trees_all_equal(take(train(tokenizer, threads=3, **changes), 20), whole)
    chex.assert_trees_all_equal(take(train(tokenizer, start_step=7, **changes), 13), whole[7:])
    iterator = train(tokenizer, **changes)
    take(iterator, 9)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = train(tokenizer, **changes)
    resumed.set_state(state)
    chex.assert_trees_all_equal(take(resumed, 11), whole[9:])
    # Of two processes, each knows the length of a batch without the other's texts.
    for rows in [(0, 1), (2, 3)]:
        for part, batch in zip(
            take(train(tokenizer, rows=rows, **changes), 20), whole, strict=True
        ):
            mine = jax.tree.map(lambda array: array[list(rows)], batch)  # noqa: B023
            chex.assert_trees_all_equal(part, mine | {"question_ids": batch["question_ids"]})


def test_a_question_in_front_of_the_text_counts(tokenizer):
    changes = {"context_includes_question": True, "questions_per_product": 1, **BUCKETS}
    batches = take(train(tokenizer, source=mixed(), **changes), 24)
    assert len(set(map(text_tokens, batches))) > 1
    for batch in batches:
        for text, ids in zip(contexts(tokenizer, batch), batch["sources"]["text"], strict=True):
            assert text.startswith(("colour", "sleeve", "size", "fit"))
            assert "red shirt" in text and 1 in ids


class _Whimsical:
    """A backend that makes one token of an even number of words, and many of an odd one."""

    size = 50

    def encode(self, text):
        words = len(text.split())
        return [5] * (3 * words if words % 2 else 1)

    def decode(self, ids):
        return " ".join(map(str, ids))


def test_what_grows_when_words_are_left_out_is_cut_and_noted():
    source = ListSource(
        product(i, product_type=None, sources={"title": "a b c" if i % 2 else "a b c d"})
        for i in range(16)
    )  # with "title:", of four words, which fit in 8 tokens, and of five, which do not
    config = {"text_length": 30, "text_buckets": (8,), "augment": AugmentConfig(word_dropout=0.3)}
    iterator = train(Tokenizer(_Whimsical()), source=source, **config)
    batches = [b for b in take(iterator, 12) if text_tokens(b) == 8]
    used = {int((row != 0).sum()) for b in batches for row in b["sources"]["text"]}
    # One token and </s>; three of one word that is left; nine of three words, cut to seven.
    assert {2, 8} <= used <= {2, 4, 8}
    ends = [row[row != 0][-1] for b in batches for row in b["sources"]["text"]]
    assert set(ends) == {1}
    assert iterator.notes.counts()["text cut off at its batch's length"] > 0


@pytest.mark.parametrize("buckets", [(20, 10), (1, 10), (10, 41), (10, 10)])
def test_lengths_that_cannot_be_are_refused(buckets):
    with pytest.raises(
        ValueError, match=r"data.text_buckets is .* give growing lengths of 2 to 40"
    ):
        make_config(text_length=40, text_buckets=buckets)


def test_the_whole_length_may_be_named_too():
    assert make_config(text_length=40, text_buckets=(10, 40)).text_lengths == (10, 40)
    assert make_config(text_length=40).text_lengths == (40,)
