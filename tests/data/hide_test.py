import pytest

from moemoe_jax.data.hide import (
    answer_words,
    folded_words,
    forms,
    hide_answers,
    hide_words,
    is_hidden,
    tells,
)
from moemoe_jax.data.records import Question, Record


def same(one, other):
    return bool(forms(one) & forms(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Shirts", "shirt"),
        ("watches", "Watch"),
        ("accessories", "accessory"),
        ("dresses", "dress"),
        ("shoes", "Shoe"),
        ("scarves", "scarf"),
        ("Women", "womens"),
        ("Women", "Women's"),
        ("Women", "women\u2019s"),
        ("men", "man"),
        ("Men", "Mens"),
    ],
)
def test_words_are_the_same_folded_both_ways(one, other):
    assert same(one, other) and same(other, one)


@pytest.mark.parametrize(
    ("one", "other"), [("men", "women"), ("dress", "dres"), ("red", "reds2"), ("bus", "bu")]
)
def test_other_words_are_not(one, other):
    assert not same(one, other)


def hidden(title, *values):
    record = Record("1", {"title": title}, attributes=dict(enumerate(values)))
    return hide_answers(record).sources.get("title")


def test_by_hand():
    assert (
        hidden("Turtle Check Men Navy Blue Shirt", "Men", "Shirts", "Navy Blue") == "Turtle Check"
    )
    assert hidden("Roxy WOMEN'S Watch", "Women", "Watches") == "Roxy"
    assert hidden("Navy-Blue cap, multi-blue band", "Navy Blue") == "cap, multi band"
    assert hidden("Polo T-Shirt and t shirts", "Tshirts") == "Polo and"
    assert hidden("Flipflops by Fila", "Flip Flops") == "by Fila"
    assert hidden("Reid & Taylor Shirt", "Shirt") == "Reid & Taylor"
    assert hidden("Redmond shirt", "Red") == "Redmond shirt"
    assert hidden("Blue", "Blue") is None  # nothing left is no source


def test_all_attributes_all_texts_and_nothing_else():
    record = Record(
        "1",
        {
            "title": "Red cotton scarf",
            "bullets": ("crimson wool", "red", "warm"),
            "image": b"red",
        },
        attributes={"color": "red", "sleeve": None},
        alternatives={"color": ("red", "crimson")},
        questions=(Question("Of what?", ("cotton", None)),),
    )
    assert answer_words(record) == {"red", "crimson", "cotton"}
    out = hide_answers(record)
    assert out.sources == {"title": "scarf", "bullets": ("wool", "warm"), "image": b"red"}
    assert out.attributes == record.attributes and record.sources["title"] == "Red cotton scarf"


def test_nothing_to_hide_changes_nothing():
    text = "A  text, with - its own (spacing)"
    assert hide_words(text, frozenset({"blue"})) == text


@pytest.mark.parametrize(
    ("text", "value", "told"),
    [
        ("Men's Round-Neck tee", "round neck", True),
        ("a neck that is round", "round neck", True),
        ("a tee with a v neck", "round neck", False),
        ("Leather sandals", "sandal", True),
        ("sandalwood", "sandal", False),
        ("", "red", False),
        ("anything", "!", False),
    ],
)
def test_what_a_text_tells(text, value, told):
    assert tells(folded_words(text), value) == told


def test_the_share_of_hidden_ids():
    ids = [f"p{i}" for i in range(1000)]
    half = {i for i in ids if is_hidden(i, 0.5)}
    assert 420 < len(half) < 580  # 500 +- 16
    assert {i for i in ids if is_hidden(i, 0.2)} < half
    assert half != {i for i in ids if is_hidden(i, 0.5, seed=1)}
    assert not is_hidden("p0", 0.0) and is_hidden("p0", 1.0)
