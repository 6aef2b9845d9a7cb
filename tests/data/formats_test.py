import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moemoe_jax.data.formats import jsonl
from moemoe_jax.data.formats.images import embedded
from moemoe_jax.data.records import Question, Record, RecordError
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import open_source
from moemoe_jax.errors import UserError

HEADER = (
    "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,"
    "productDisplayName\n"
)


def test_fashion_folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "images" / name).write_bytes(b"jpeg")
    (tmp_path / "styles.csv").write_text(
        HEADER
        + "1,Men,Apparel,Topwear,Shirts,Navy Blue,Fall,2011,Casual,Turtle Men Shirt\n"
        + "2,Women,Apparel,Topwear,Tops,NA,,2012,Casual,Top, with a comma, and more\n"
        + '3,Men,Footwear,Shoes,Sports Shoes,Red,Fall,2011,Sports,"Say ""hi"", shoe"\n'
        + "4,Men,Footwear\n"
        + "1,Men,Apparel,Topwear,Shirts,Navy Blue,Fall,2011,Casual,Again\n"
    )
    rejects = Rejects(tmp_path / "r.jsonl", 1.0)
    source = open_source(str(tmp_path), rejects=rejects)
    first, second, third = (source[i] for i in range(3))
    assert len(source) == 3
    assert first.image("image") == tmp_path.resolve() / "images" / "1.jpg"
    assert first.attributes == {
        "gender": "Men",
        "subCategory": "Topwear",
        "articleType": "Shirts",
        "baseColour": "Navy Blue",
        "season": "Fall",
        "usage": "Casual",
    }
    assert second.text("title") == "Top, with a comma, and more"
    assert "baseColour" not in second.attributes and "season" not in second.attributes
    assert third.text("title") == 'Say "hi", shoe' and third.image("image") is None
    listed = [json.loads(line) for line in rejects.path.read_text().splitlines()]
    assert [(e["line"], e["reason"], e.get("id")) for e in listed] == [
        (4, "missing image: images/3.jpg", "3"),
        (5, "too few columns: 3 of 10", None),
        (6, "duplicate id", "1"),
    ]


def test_where_a_line_is_no_json_is_told_by_its_own_columns(tmp_path):
    lines = ['{"id": "1"', '{"id": 1,, "sources": {}}', "{"]
    (tmp_path / "a.jsonl").write_text("\r\n".join(lines) + "\n")
    rejects = Rejects(tmp_path / "r" / "rejects.jsonl", 1.0)
    with pytest.raises(UserError, match="no record in"):
        open_source(str(tmp_path), rejects=rejects)
    listed = [json.loads(line) for line in rejects.path.read_text().splitlines()]
    told = [(one["line"], re.search(r"column \d+", one["reason"])[0]) for one in listed]
    assert told == [(1, "column 11"), (2, "column 10"), (3, "column 2")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            '{"id": "1", "sources": {"title',
            "Unterminated string starting at column 25; the line seems cut",
        ),
        ("id,title,color", "Expecting value at column 1"),
        ("{", "double quotes at column 2; a record must stand in one line"),
        ('{"id": "1", "attributes": {"color": "red", "color": "blue"}}', "'color'; keep one"),
        ('{"id": "1", "sources": {}, "id": "2"}', "key twice in one object: 'id'; keep one"),
    ],
)
def test_what_a_line_may_be_is_told(line, reason):
    with pytest.raises(RecordError) as error:
        jsonl.load_json(line)
    assert reason in str(error.value)
    assert ("cut short" in str(error.value)) == ("cut" in reason)


def test_a_key_twice_in_a_text_column_of_parquet_is_rejected(tmp_path):
    texts = ['{"color": "red"}', '{"color": "red", "color": "blue"}']
    rows = [
        {"id": str(n), "sources": {"title": "t"}, "attributes": text}
        for n, text in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    rejects = Rejects(None, 1.0)
    (record,) = open_source(str(tmp_path), rejects=rejects)
    assert record.attributes == {"color": "red"}
    assert rejects.reasons == {"key twice in one object": 1}


def test_fashion_lines_that_are_no_csv_are_rejected(tmp_path):
    row = "Men,Apparel,Topwear,Shirts,Navy Blue,Fall,2011,Casual"
    lines = [f"1,{row},Two\rlines", f"2,{row},{'x' * 200_000}", f"3,{row},Shirt"]
    (tmp_path / "styles.csv").write_bytes((HEADER + "\n".join(lines)).encode())
    rejects = Rejects(None, 1.0)
    assert [record.id for record in open_source(str(tmp_path), rejects=rejects)] == ["3"]
    assert rejects.reasons == {"not CSV": 2, "missing image": 1}


def test_fashion_needs_its_columns(tmp_path):
    (tmp_path / "styles.csv").write_text("id,gender\n1,Men\n")
    with pytest.raises(UserError, match="no column 'subCategory'"):
        open_source(str(tmp_path))
    (tmp_path / "styles.csv").write_bytes(HEADER.encode().replace(b"\n", b"\r") + b"1,Men\r")
    with pytest.raises(UserError, match="line 1 is not CSV"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("named", ["archive", "archive/fashion", "archive/fashion/data/images"])
def test_where_the_fashion_table_is_not_is_told_with_the_folder_near_that_holds_it(tmp_path, named):
    data = tmp_path / "archive" / "fashion" / "data"
    (data / "images").mkdir(parents=True)
    (data / "styles.csv").write_text(HEADER)
    with pytest.raises(UserError) as refused:
        open_source(f"fashion:{tmp_path / named}")
    assert str(refused.value) == (
        f"{tmp_path / named} holds no styles.csv, the table of 'Fashion Product Images'; "
        f"write fashion:{data}"
    )
    (data / "styles.csv").unlink()
    with pytest.raises(UserError, match=r"no styles\.csv.*; name the folder that holds styles"):
        open_source(f"fashion:{tmp_path / named}")


def test_wdc_pave(tmp_path):
    offers = [
        {
            "id": 5,
            "category": "Office Products",
            "input_title": "Manila tags",
            "input_description": "",
            "target_scores": {
                "Type": {
                    "tags": {"pid": [0], "score": 1},
                    "Shipping tags": {"pid": [1], "score": 1},
                },
                "Color": {"Manila": {"pid": [0], "score": 1}},
                "Width": {"n/a": 1},
            },
        },
        {"id": 6, "input_title": "x", "target_scores": {"Type": 3}},
        {"id": 7, "input_title": "x"},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, offers)))
    rejects = Rejects(None, 1.0)
    source = open_source(str(path), rejects=rejects)
    assert len(source) == 1
    record = source[0]
    assert record.id == "5" and record.product_type == "Office Products"
    assert record.sources == {"title": "Manila tags"}
    assert record.attributes == {"Type": "tags", "Color": "Manila", "Width": None}
    assert record.alternatives == {"Type": ("tags", "Shipping tags")}
    assert rejects.reasons == {"wrong type": 1, "no 'target_scores'": 1}


def test_parquet_with_maps_lists_and_images_inside(tmp_path):
    text = pa.string()
    question = pa.struct([("question", text), ("answers", pa.list_(text))])
    sources = [("title", text), ("bullets", pa.list_(text)), ("image", pa.binary())]
    schema = pa.schema(
        [
            ("id", text),
            ("sources", pa.struct(sources)),
            ("product_type", text),
            ("marketplace", text),
            ("attributes", pa.map_(text, text)),
            ("alternatives", pa.map_(text, pa.list_(text))),
            ("questions", pa.list_(question)),
            ("evidence", pa.map_(text, text)),
        ]
    )
    rows = [
        {
            "id": "a",
            "sources": {"title": "Blue", "bullets": ["one", "two"], "image": b"\xff\xd8file"},
            "product_type": "SHIRT",
            "marketplace": "IN",
            "attributes": [("color", "blue"), ("sleeve", None)],
            "alternatives": [("color", ["blue", "navy"])],
            "questions": [{"question": "Which?", "answers": ["this", None]}, {"question": "Why?"}],
            "evidence": [("color", "both")],
        },
        {"id": "b", "sources": {"image": b"\x00\xffbytes"}},
        {"id": "c", "sources": {"title": "No picture"}},
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet", row_group_size=2)
    assert list(open_source(str(tmp_path / "a.parquet"))) == [
        Record(
            "a",
            {"title": "Blue", "bullets": ("one", "two"), "image": b"\xff\xd8file"},
            "SHIRT",
            "IN",
            {"color": "blue", "sleeve": None},
            {"color": ("blue", "navy")},
            (Question("Which?", ("this", None)), Question("Why?")),
            {"color": "both"},
        ),
        Record("b", {"image": b"\x00\xffbytes"}),
        Record("c", {"title": "No picture"}),
    ]


def test_an_image_that_cannot_be_put_inside_is_listed_as_its_file(tmp_path):
    rejects = Rejects(tmp_path / "rejects.jsonl")
    record = Record("c", {"title": "No picture", "image": tmp_path / "gone.jpg"})
    assert embedded(record, "listed", 3, rejects) == Record("c", {"title": "No picture"})
    (listed,) = map(json.loads, rejects.path.read_text().splitlines())
    assert listed == {
        "file": str(tmp_path / "gone.jpg"),
        "line": 0,
        "reason": "unreadable image: No such file or directory",
        "id": "c",
    }


def test_parquet_of_others(tmp_path):
    """Structs instead of maps, JSON texts, numbers for ids, paths for images, bad rows."""
    rows = {
        "id": [1, 2, 2, None, 5],
        "sources": [{"title": "t", "image": "a.jpg"}] * 4 + [{"title": "t", "image": "/etc/x"}],
        "attributes": [{"color": "red", "size": None}] + [{"color": None, "size": "L"}] * 4,
        "questions": [json.dumps([{"question": "q", "answer": "a"}])] * 5,
    }
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(rows), path)
    rejects = Rejects(tmp_path / "r.jsonl", 1.0)
    source = open_source(str(path), rejects=rejects)
    assert [source[i].id for i in range(len(source))] == ["1", "2"]
    assert source[0].attributes == {"color": "red"}  # a struct's null is "not known"
    assert source[0].questions == (Question("q", ("a",)),)
    assert source[0].image("image") == tmp_path.resolve() / "a.jpg"
    listed = [json.loads(line) for line in rejects.path.read_text().splitlines()]
    assert [(e["line"], e["reason"].split(":")[0]) for e in listed] == [
        (3, "duplicate id"),
        (4, "no id"),
        (5, "image path leads outside the data folder"),
    ]


@pytest.mark.parametrize("rows_per_group", [5, 1])
@pytest.mark.parametrize("listed", [False, True])
def test_of_an_image_in_parquet_with_bytes_and_a_path_the_bytes_count(
    tmp_path, rows_per_group, listed
):
    images = [
        {"bytes": b"one", "path": "/where/it/was.jpg"},
        {"bytes": b"two", "path": "https://shop/2.jpg"},
        {"bytes": None, "path": "3.jpg"},
        {"bytes": None, "path": "/where/it/was.jpg"},
        {"bytes": b"five", "path": None},
    ]
    rows = [
        {"id": str(n), "sources": {"image": [image] if listed else image}}
        for n, image in enumerate(images, 1)
    ]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=rows_per_group)
    rejects = Rejects(None, 1.0)
    source = open_source(str(path), rejects=rejects)
    assert {record.id: record.image("image") for record in source} == {
        "1": b"one", "2": b"two", "3": tmp_path.resolve() / "3.jpg", "5": b"five",
    }  # fmt: skip
    assert rejects.reasons == {"image path leads outside the data folder": 1}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("attributes", [{"name": "color", "value": "red"}]),
        ("attributes", ["ab"]),
        ("attributes", 5),
        ("questions", ["which?"]),
        ("questions", 5),
    ],
)
def test_parquet_columns_of_another_shape_are_rejected(tmp_path, column, value):
    path = tmp_path / "x.parquet"
    rows = [{"id": "1", "sources": {"title": "t"}, column: value}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(UserError, match=r"1 of 1 records were rejected.*wrong (type|question)"):
        open_source(str(path))


def test_parquet_that_is_none(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        open_source(str(path))
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(UserError, match="no column 'sources'"):
        open_source(str(path))
