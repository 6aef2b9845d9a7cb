import json
import os
import pickle

import pytest

from moemoe_jax.data.records import (
    Question,
    RecordError,
    is_image_source,
    parse_record,
    record_to_mapping,
)

FULL = {
    "id": "p1",
    "sources": {
        "title": "Blue shirt",
        "bullets": ["cotton", "slim fit"],
        "image": ["a.jpg", "b.jpg"],
    },
    "product_type": "SHIRT",
    "marketplace": "IN",
    "attributes": {"color": "blue", "sleeve": None, "material": ["cotton", "Cotton blend"]},
    "questions": [
        {"question": "Is it slim?", "answer": "yes"},
        {"question": "Which collar?", "answer": None},
        {"question": "Which fit?", "answers": ["slim", "slim fit"]},
        {"question": "What else?"},
    ],
    "evidence": {"color": "both", "sleeve": "none"},
}


def test_a_full_record(tmp_path):
    record = parse_record(FULL, tmp_path)
    root = tmp_path.resolve()
    assert record.id == "p1"
    assert record.sources["bullets"] == ("cotton", "slim fit")
    assert record.text("bullets") == "cotton slim fit"
    assert record.sources["image"] == (root / "a.jpg", root / "b.jpg")
    assert record.image("image") == root / "a.jpg"
    assert record.image("title") is None and record.text("image") is None
    assert record.attributes == {"color": "blue", "sleeve": None, "material": "cotton"}
    assert record.accepted("material") == ("cotton", "Cotton blend")
    assert record.accepted("color") == ("blue",)
    assert record.accepted("sleeve") == record.accepted("unknown") == ()
    assert record.questions == (
        Question("Is it slim?", ("yes",)),
        Question("Which collar?", (None,)),
        Question("Which fit?", ("slim", "slim fit")),
        Question("What else?", ()),
    )
    assert pickle.loads(pickle.dumps(record)) == record


def test_a_record_survives_its_mapping(tmp_path):
    mapping = {**FULL, "sources": {**FULL["sources"], "image": [b"one", b"two"], "image_2": b"3"}}
    record = parse_record(mapping, tmp_path)
    packed, images = record_to_mapping(record)
    assert images == [b"one", b"two", b"3"]
    assert parse_record(json.loads(json.dumps(packed)), None, images) == record


def test_what_is_empty_is_not_there():
    record = parse_record(
        {
            "id": 7,
            "sources": {"title": "", "description": None, "bullets": ["", " "], "image": []},
            "attributes": {"color": " "},
            "product_type": "",
        },
        None,
    )
    assert record.id == "7"
    assert record.sources == {} and record.attributes == {} and record.product_type is None


def test_half_surrogates_become_a_question_mark():
    record = parse_record({"id": "x", "sources": {"title": "a\ud800é"}}, None)
    assert record.sources["title"] == "a?é"


def test_half_surrogates_in_names_become_a_question_mark_as_well():
    record = parse_record(
        {
            "id": "x",
            "sources": {"t\ud800": "shirt"},
            "attributes": {"a\ud800": "red"},
            "alternatives": {"a\ud800": ["crimson"]},
            "evidence": {"a\ud800": "text"},
        },
        None,
    )
    assert record.sources == {"t?": "shirt"} and record.accepted("a?") == ("red", "crimson")
    assert record.evidence == {"a?": "text"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "no id"),
        ({"id": " "}, "no id"),
        ({"id": 1.5}, "'id' is a number, not a text"),
        ({"id": True}, "'id' is a true/false"),
        ({"sources": ["title"]}, "'sources' is a list, not an object"),
        ({"sources": {"title": True}}, "source 'title' is a true/false"),
        ({"sources": {"title": [["x"]]}}, "list of lists"),
        ({"sources": {"image": 3}}, "source 'image' is a number, not an image path"),
        ({"sources": {"image": "https://x/y.jpg"}}, "download it"),
        ({"sources": {"image": {"blob": 2}}}, "points to blob 2"),
        ({"attributes": {"a": "x", " a ": "y"}}, "one in 'attributes' is blank, or twice there"),
        ({"sources": {" ": "x"}}, "one in 'sources' is blank"),
        ({"attributes": {"a": {}}}, "attribute 'a' is a object"),
        ({"attributes": {"a": True}}, "attribute 'a' is a true/false"),
        ({"alternatives": {"b": ["x"]}}, "'b' has none of its values"),
        ({"attribute": {}}, "did you mean 'attributes'"),
        ({"questions": {}}, "'questions' is a object, not a list"),
        ({"questions": [{"answer": "x"}]}, "such as {'question'"),
        ({"questions": [{"question": "q", "answer": "x", "answers": []}]}, "both"),
        ({"evidence": {"a": "sound"}}, "'sound', not one of"),
        ({"product_type": 3}, "'product_type' is a number"),
    ],
)
def test_what_is_wrong_is_refused_with_a_reason(change, message, tmp_path):
    with pytest.raises(RecordError, match=message):
        parse_record({**FULL, **change}, tmp_path)


def test_blanks_around_a_name_are_none_of_it():
    record = parse_record(
        {"id": "1", "sources": {"title ": "x"}, "attributes": {" color": "red"}}, None
    )
    assert record.sources == {"title": "x"} and record.attributes == {"color": "red"}


def test_no_sources_and_no_object():
    with pytest.raises(RecordError, match="no 'sources'"):
        parse_record({"id": "1", "title": "shirt"}, None)
    with pytest.raises(RecordError, match="not an object"):
        parse_record([1], None)


def test_image_paths_stay_in_the_folder(tmp_path):
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"x")
    os.symlink(tmp_path / "secret.jpg", folder / "link.jpg")
    os.symlink(tmp_path, folder / "up")

    def image(path):
        return parse_record({"id": "1", "sources": {"image": path}}, folder).image("image")

    inside = folder.resolve() / "a.jpg"
    assert image("a.jpg") == image("sub/../a.jpg") == image(str(inside)) == inside
    for path in ("../secret.jpg", "sub/../../secret.jpg", str(tmp_path / "secret.jpg"),
                 "link.jpg", "up/secret.jpg", "..", "/etc/passwd"):  # fmt: skip
        with pytest.raises(RecordError, match="leads outside the data folder"):
            image(path)
    with pytest.raises(RecordError, match="NUL"):
        image("a\0.jpg")
    for path in ("a\ud800.jpg", "\ud800/a.jpg"):
        with pytest.raises(RecordError, match="half a surrogate pair"):
            image(path)
    with pytest.raises(RecordError, match="has no folder"):
        parse_record({"id": "1", "sources": {"image": "a.jpg"}}, None)


def test_which_names_are_images():
    assert all(map(is_image_source, ("image", "images", "image_back", "front_image")))
    assert not any(map(is_image_source, ("title", "imagery", "description")))
