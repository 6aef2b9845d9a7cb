import collections
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import io
import re

import numpy as np
from PIL import Image
import pytest

from moemoe_jax.data.catalogue import (
    CatalogueConfig,
    CatalogueSource,
    make_record,
    parse_config,
    render,
    schema,
    write_text,
)
from moemoe_jax.errors import UserError

TEXTS = ("title", "bullets", "description")
ATTRIBUTES = tuple(schema.VALUES)


@pytest.fixture(scope="module")
def records():
    """300 records of a small picture, shared by the tests that only look at them."""
    source = CatalogueSource(CatalogueConfig(products=300, image_size=16))
    return [source[i] for i in range(len(source))]


def all_text(record):
    return " | ".join(record.text(name) for name in TEXTS)


def tells(text, value):
    """Whether `value` occurs in `text` as whole words, whatever the case."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


# --- the schema ---


def test_the_schema_has_the_30_types_and_38_attributes_of_the_paper():
    assert len(set(schema.PRODUCT_TYPES)) == 30
    assert len(ATTRIBUTES) == 38
    assert schema.PRODUCT_TYPES[0] == "apparel belt" and schema.PRODUCT_TYPES[-1] == "underpants"
    assert ATTRIBUTES[0] == "age range description"
    assert ATTRIBUTES[-1] == "weave type"


def test_every_type_is_asked_known_attributes_and_every_attribute_is_asked():
    assert set(schema.ASKED) == set(schema.PRODUCT_TYPES)
    for names in schema.ASKED.values():
        assert 6 <= len(names) <= 14 and len(set(names)) == len(names)
    assert {name for names in schema.ASKED.values() for name in names} == set(ATTRIBUTES)
    assert set(ATTRIBUTES) >= schema.DRAWABLE


def test_no_value_occurs_in_another_value_or_in_a_name():
    values = [v for several in schema.VALUES.values() for v in several] + [*schema.EXTRA_VALUES]
    assert len(set(values)) == len(values)
    for value in values:
        for other in (*values, *ATTRIBUTES, *schema.PRODUCT_TYPES):
            assert value == other or not tells(other, value), (value, other)


# --- what a record claims ---


def test_a_value_is_in_the_text_exactly_when_the_evidence_says_so(records):
    for record in records:
        values = [record.attributes[name] for name in record.evidence]
        for (name, kind), value in zip(record.evidence.items(), values, strict=True):
            assert (value is None) == (kind == "none")
            if value is not None:
                assert tells(all_text(record), value) == (kind in ("text", "both")), name
            if kind in ("image", "both"):
                assert name in schema.DRAWABLE


def test_the_text_tells_no_value_but_the_told_ones_and_the_distractor():
    values = [(n, v) for n, several in schema.VALUES.items() for v in several]
    values += [("", v) for v in schema.EXTRA_VALUES]
    for seed in range(150):
        kind = schema.PRODUCT_TYPES[seed % 30]
        asked = schema.ASKED[kind]
        told = {name: schema.VALUES[name][seed % 3] for name in asked[seed % 2 :: 2]}
        told["spec 0042"] = "kilo"
        text = write_text(kind, told, seed, ("color", "purple"))
        joined = " | ".join([text["title"], *text["bullets"], text["description"]])
        found = {v for _, v in values if tells(joined, v)}
        assert found == {*told.values(), "purple"}, joined
        # Every one is told once, and the distractor in front of the other product that has it.
        for value in told.values():
            assert len(re.findall(rf"(?<!\w){value}(?!\w)", joined)) == 1
        other = re.search(r"(?:goes well|looks great|buyers also|try it together).* purple (.*)",
                          joined)  # fmt: skip
        assert other and not other.group(1).startswith(kind + ".")


def test_a_distractor_never_names_the_own_value_of_a_product(records):
    opening = re.compile(r"(?:goes well with any|next to our|also chose the|with our) (\w+)")
    distracted = 0
    for record in records:
        match = opening.search(all_text(record))
        if match:
            distracted += 1
            assert match.group(1) not in record.attributes.values()
    assert 40 < distracted < 115  # a quarter of 300, give or take


def with_value(name, value, kind, **changes):
    """A shirt of which only `name` varies."""
    values = {n: schema.VALUES[n][0] for n in schema.ASKED["shirt"]}
    evidence = {n: "both" if n in schema.DRAWABLE else "text" for n in values}
    return make_record("x", "shirt", {**values, name: value}, {**evidence, name: kind},
                       text_seed=1, image_seed=2, **changes)  # fmt: skip


def test_a_value_seen_in_the_image_only_changes_pixels_and_no_word():
    red, blue = (with_value("color", value, "image") for value in ("red", "blue"))
    assert [red.text(name) for name in TEXTS] == [blue.text(name) for name in TEXTS]
    assert red.sources["image"] != blue.sources["image"]


def test_a_value_seen_in_the_text_only_changes_words_and_no_pixel():
    red, blue = (with_value("color", value, "text") for value in ("red", "blue"))
    assert all_text(red) != all_text(blue)
    assert red.sources["image"] == blue.sources["image"]


def test_a_value_seen_nowhere_changes_nothing():
    red, blue = (with_value("color", value, "none") for value in ("red", "blue"))
    assert red == blue and red.attributes["color"] is None


def test_every_drawable_value_of_every_type_is_clearly_visible():
    # At 64 pixels two values differ by more than 40 grey levels in at least 20 pixels, and so do
    # each value and a picture that does not show the attribute.
    for kind, asked in schema.ASKED.items():
        for name in schema.DRAWABLE.intersection(asked):
            choices = [{}, *({name: value} for value in schema.VALUES[name])]
            pictures = [np.asarray(render(kind, shown, seed=3), np.int32) for shown in choices]
            for i, one in enumerate(pictures):
                for j in range(i):
                    moved = np.abs(one - pictures[j]).max(-1) > 40
                    assert moved.sum() >= 20, (kind, name, choices[i], choices[j])


def test_only_attributes_that_a_type_has_and_that_can_be_drawn_are_drawn():
    with pytest.raises(ValueError, match="'toe style' of 'shirt' cannot be drawn"):
        render("shirt", {"toe style": "open toe"})
    with pytest.raises(ValueError, match="'material' of 'shirt' cannot be drawn"):
        render("shirt", {"material": "silk"})


def test_values_and_evidence_are_spread_evenly():
    # Without drawing: the records of an own seed, enough of them for the shares to settle.
    source = CatalogueSource(CatalogueConfig(products=1200, seed=5, image_size=16))
    values, kinds = collections.Counter(), collections.Counter()
    for i in range(len(source)):
        record = source[i]
        values[record.attributes["color"]] += 1
        kinds[record.evidence["color"]] += 1
    del values[None]
    assert max(values.values()) / values.total() < 0.2  # 8 colours: 1/8 each
    for kind, share in (("image", 0.40), ("both", 0.15), ("text", 0.30), ("none", 0.15)):
        assert abs(kinds[kind] / len(source) - share) < 0.05


# --- the source ---


def test_records_depend_on_seed_split_and_index_only():
    config = CatalogueConfig(products=40, image_size=16, extra_question_types=30)
    forward = [CatalogueSource(config)[i] for i in range(6)]
    other = CatalogueSource(config)
    with ThreadPoolExecutor(3) as pool:
        backward = list(pool.map(other.__getitem__, reversed(range(6))))
    assert forward == backward[::-1]
    assert CatalogueSource(dataclasses.replace(config, products=60))[3] == forward[3]
    assert CatalogueSource(dataclasses.replace(config, seed=1))[3] != forward[3]
    assert other[-1] == other[39] and other[np.int64(2)] == forward[2]
    with pytest.raises(IndexError, match=r"record 40 of 40 in catalogue\[train\]"):
        other[40]


def test_splits_are_disjoint_and_sized():
    splits = {s: CatalogueSource.from_spec("products=50,image_size=16", s)
              for s in ("train", "val", "test")}  # fmt: skip
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 50, "val": 5, "test": 5}  # fmt: skip
    ids = [split[i].id for split in splits.values() for i in range(len(split))]
    texts = [all_text(split[i]) for split in splits.values() for i in range(len(split))]
    assert len(set(ids)) == 60 and len(set(texts)) == 60
    assert CatalogueSource.from_spec("products=50").split == "train"


def test_images_are_png_of_the_asked_size():
    record = CatalogueSource.from_spec("products=10,image_size=48", "test")[0]
    image = Image.open(io.BytesIO(record.sources["image"]))
    assert image.format == "PNG" and image.size == (48, 48) and image.mode == "RGB"


def test_extra_question_types_share_a_vocabulary_and_change_nothing_else():
    plain = CatalogueSource.from_spec("products=30,image_size=16")
    more = CatalogueSource.from_spec("products=30,image_size=16,extra_question_types=2000")
    assert len(ATTRIBUTES) == 38 and schema.extra_name(1999) == "spec 1999"
    names = {schema.extra_name(number) for number in range(2000)}
    for i in range(30):
        extras = {n: v for n, v in more[i].attributes.items() if n.startswith("spec ")}
        assert len(extras) == 4 and set(extras) <= names
        for name, value in extras.items():
            if more[i].evidence[name] == "none":
                assert value is None and name not in all_text(more[i])
            else:  # the text names the question with the answer
                assert re.search(rf"{name}(?:: | - | is ){value}\b", all_text(more[i]))
        rest = {n: v for n, v in more[i].attributes.items() if n not in extras}
        assert rest == plain[i].attributes
        assert more[i].sources["image"] == plain[i].sources["image"]


def test_label_noise_is_in_train_only_and_changes_answers_only():
    clean = CatalogueSource.from_spec("products=100,image_size=16")
    noisy = CatalogueSource.from_spec("products=100,image_size=16,label_noise=0.2")
    changed = total = 0
    for i in range(100):
        before, after = clean[i], noisy[i]
        assert before.sources == after.sources and before.evidence == after.evidence
        for name, value in before.attributes.items():
            if value is None:
                assert after.attributes[name] is None
                continue
            assert after.attributes[name] in schema.values_of(name)
            total += 1
            changed += after.attributes[name] != value
    assert abs(changed / total - 0.2) < 0.05
    for split in ("val", "test"):
        one, two = (CatalogueSource(s.config, split) for s in (clean, noisy))
        assert [one[i] for i in range(10)] == [two[i] for i in range(10)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("product=4", r"unknown key 'product': did you mean 'products'\?"),
        ("products", r"products=''; give a whole number"),
        ("products=4.5", r"products='4.5'; give a whole number"),
        ("products=0", "products=0; give 1 or more"),
        ("image_size=8", "image_size=8; give 16 or more"),
        ("label_noise=2", "label_noise=2.0; give a share from 0 to below 1"),
        ("label_noise=nan", "label_noise=nan; give a share"),
        ("seed=1,seed=2", "'seed' is given twice"),
    ],
)
def test_a_wrong_spec_is_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_config(text)
    assert "\n" not in str(caught.value)


def test_a_spec_and_a_split_are_read():
    assert parse_config("") == CatalogueConfig()
    given = parse_config("products=7, seed=3,label_noise=0.1,extra_question_types=9,image_size=32")
    assert given == CatalogueConfig(7, 3, 0.1, 9, 32)
    with pytest.raises(UserError, match="unknown split 'valid'; choose one of train, val, test"):
        CatalogueSource.from_spec("products=7", "valid")
