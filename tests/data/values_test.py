"""Numbers as values of a record: the same texts from every format."""

from decimal import Decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moemoe_jax.data.records import Question, Record, RecordError, parse_record
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import open_source

MAPPING = {
    "id": "a",
    "sources": {"title": "Shirt", "year": 2012, "width": 2.5, "sizes": [38, 40], "weights": [0.1]},
    "attributes": {"price": 19.99, "pieces": 3},
}
RECORD = Record(
    "a",
    {"title": "Shirt", "year": "2012", "width": "2.5", "sizes": ("38", "40"), "weights": ("0.1",)},
    attributes={"price": "19.99", "pieces": "3"},
)


@pytest.mark.parametrize(
    ("number", "text"),
    [(2012, "2012"), (0, "0"), (2.5, "2.5"), (2.0, "2.0"), (Decimal("2.50"), "2.50")],
)
def test_numbers_become_texts_as_sources_and_as_answers(number, text):
    record = parse_record(
        {
            "id": "x",
            "sources": {"year": number, "bullets": ["new", number, None]},
            "attributes": {"size": number, "sizes": ["L", number]},
            "questions": [{"question": "q", "answers": [number]}],
        },
        None,
    )
    assert record.sources == {"year": text, "bullets": ("new", text)}
    assert record.text("bullets") == f"new {text}"
    assert record.attributes == {"size": text, "sizes": "L"}
    assert record.accepted("sizes") == ("L", text)
    assert record.questions == (Question("q", (text,)),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {"year": float("nan")}}, "source 'year' is nan; leave it out"),
        ({"sources": {"bullets": ["x", float("inf")]}}, "source 'bullets' is inf"),
        ({"sources": {"price": Decimal("NaN")}}, "source 'price' is NaN"),
        ({"attributes": {"a": float("nan")}}, "attribute 'a' is nan; leave it out"),
        ({"questions": [{"question": "q", "answer": float("inf")}]}, "an answer is inf"),
    ],
)
def test_what_is_no_number_is_refused(change, message):
    with pytest.raises(RecordError, match=message):
        parse_record({"id": "1", "sources": {}, **change}, None)


def reread(folder, mapping, sources, attributes):
    """A record that went through Parquet, in columns of these Arrow types."""
    schema = pa.schema({"id": pa.string(), "sources": sources, "attributes": attributes})
    path = folder / "x.parquet"
    pq.write_table(pa.Table.from_pylist([mapping], schema), path)
    (record,) = open_source(str(path))
    return record


def test_json_lines_and_parquet_give_the_same_texts(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(MAPPING) + "\n")
    assert list(open_source(str(tmp_path / "a.jsonl"))) == [RECORD]
    values = pa.struct({"price": pa.float64(), "pieces": pa.int64()})
    for single, listed in ((pa.float64(), pa.list_), (pa.float32(), pa.large_list)):
        sources = pa.struct(
            {
                "title": pa.string(),
                "year": pa.int16(),
                "width": single,
                "sizes": listed(pa.uint8()),
                "weights": listed(single),
            }
        )
        assert reread(tmp_path, MAPPING, sources, values) == RECORD
        # A map has one type for all of its values.
        pairs = MAPPING | {"attributes": list(MAPPING["attributes"].items())}
        record = reread(tmp_path, pairs, sources, pa.map_(pa.string(), single))
        assert record.attributes == {"price": "19.99", "pieces": "3.0"}
    texts = MAPPING | {key: json.dumps(MAPPING[key]) for key in ("sources", "attributes")}
    assert reread(tmp_path, texts, pa.string(), pa.string()) == RECORD


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_of_parquet_what_is_no_number_is_rejected_and_null_left_out(tmp_path, kind):
    years = [2012.0, float("nan"), None, float("inf")]
    rows = [{"id": str(n), "sources": {"title": "t", "year": y}} for n, y in enumerate(years)]
    sources = pa.struct({"title": pa.string(), "year": kind})
    schema = pa.schema({"id": pa.string(), "sources": sources})
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "x.parquet")
    rejects = Rejects(None, 1.0)
    found = list(open_source(str(tmp_path), rejects=rejects))
    assert [record.sources.get("year") for record in found] == ["2012.0", None]
    assert rejects.reasons == {"wrong value": 2}
