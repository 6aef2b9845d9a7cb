from concurrent.futures import ThreadPoolExecutor
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import RecordSource, open_source, open_splits, own_splits
from moemoe_jax.data.splits import SplitSource
from moemoe_jax.errors import UserError


def write(path, ids):
    lines = [json.dumps({"id": i, "sources": {"title": f"title {i}"}}) for i in ids]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def parquet(path, ids):
    pq.write_table(
        pa.Table.from_pylist([{"id": i, "sources": {"title": f"title {i}"}} for i in ids]), path
    )


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def ids_of(source):
    return [source[i].id for i in range(len(source))]


def test_a_file_of_records(tmp_path):
    source = open_source(str(write(tmp_path / "a.jsonl", "abc")))
    assert isinstance(source, RecordSource)
    assert ids_of(source) == ["a", "b", "c"] and source[-1].id == "c" and source.splits == ()
    assert source[1].sources == {"title": "title b"}
    with pytest.raises(IndexError):
        source[3]
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as pool:
        assert [r.id for r in pool.map(copy.__getitem__, [2, 0, 1] * 20)] == ["c", "a", "b"] * 20


def test_a_folder_is_one_source_and_ids_are_its_own(tmp_path):
    write(tmp_path / "part-0.jsonl", "ab")
    write(tmp_path / "part-1.jsonl", "cbad")
    rejects = Rejects(None, 1.0)
    source = open_source(str(tmp_path), rejects=rejects)
    assert ids_of(source) == ["a", "b", "c", "d"]
    assert rejects.reasons == {"duplicate id": 2} and rejects.seen == 6


def test_a_source_without_splits_is_cut_by_hash(tmp_path):
    path = write(tmp_path / "a.jsonl", [f"p{i}" for i in range(200)])
    parts = open_splits(str(path), ("train", "val", "test"), fractions={"val": 0.3, "test": 0.3})
    assert all(isinstance(part, SplitSource) and len(part) for part in parts.values())
    assert sum(map(len, parts.values())) == 200
    again = open_source(str(path), "val", fractions={"val": 0.3, "test": 0.3})
    assert ids_of(again) == ids_of(parts["val"])
    other = open_source(str(path), "val", fractions={"val": 0.3}, split_seed=1)
    assert ids_of(other) != ids_of(again)
    with pytest.raises(UserError, match="give 'val' a share"):
        open_source(str(path), "val", fractions={"test": 0.2})


def test_own_splits_are_kept_and_the_missing_one_is_cut_from_train(tmp_path):
    write(tmp_path / "train.jsonl", [f"p{i}" for i in range(200)])
    write(tmp_path / "test-0.jsonl", ["t0"])
    write(tmp_path / "test-1.jsonl", ["t1"])
    spec = str(tmp_path)
    assert own_splits(spec) == ("test", "train")
    parts = open_splits(spec, ("train", "val", "test"))
    assert ids_of(parts["test"]) == ["t0", "t1"]
    assert 0 < len(parts["val"]) < 40
    assert len(parts["train"]) + len(parts["val"]) == 200
    everything = open_source(spec)
    assert len(everything) == 202 and everything.splits == ("test", "train")


def test_ids_in_two_splits_are_told_and_kept(tmp_path, caplog):
    ids = [f"p{i}" for i in range(200)]
    write(tmp_path / "train.jsonl", ids)
    write(tmp_path / "test.jsonl", ["p8", "new", "p7", "p18"])
    with caplog.at_level("WARNING", logger="absl"):
        parts = open_splits(str(tmp_path), ("train", "val", "test"))
    (told,) = messages(caplog)
    # One of them, p18, is then cut off for val.
    assert "3 of the 200 ids of split train are in split test as well, such as 'p7'" in told
    assert sum(map(len, parts.values())) == 204


def test_splits_that_share_nothing_are_told_nothing_of(tmp_path, caplog):
    write(tmp_path / "train.jsonl", [f"p{i}" for i in range(100)])
    write(tmp_path / "test.jsonl", ["t0"])
    with caplog.at_level("WARNING", logger="absl"):
        open_splits(str(tmp_path), ("train", "val", "test"))
        open_splits(str(tmp_path), ("train", None))
    assert not caplog.records


@pytest.mark.parametrize(("write", "suffix"), [(write, "jsonl"), (parquet, "parquet")])
def test_a_training_is_told_of_ids_in_the_test_split_that_it_does_not_open(
    tmp_path, caplog, monkeypatch, write, suffix
):
    write(tmp_path / f"train.{suffix}", ["p1", "p2", "p3"])
    write(tmp_path / f"test.{suffix}", ["new", "p3", "p1", "p2"])
    rejects = Rejects()
    monkeypatch.setattr("moemoe_jax.data.sources._FIRST_IDS", 3)
    with caplog.at_level("WARNING", logger="absl"):
        open_source(str(tmp_path), "test")
        assert not caplog.records
        open_splits(str(tmp_path), ("train", "val"), rejects)
    (told,) = messages(caplog)
    assert "2 of the first 3 ids of split test are in split train as well, such as 'p3'" in told
    assert rejects.seen == 3


def test_of_a_test_split_that_cannot_be_read_a_training_says_nothing(tmp_path, caplog):
    write(tmp_path / "train.jsonl", ["1", "p2"])
    (tmp_path / "test.jsonl").write_bytes(b'\xff\n[1]\n{"id": null}\n{"id": 1}\n')
    with caplog.at_level("WARNING", logger="absl"):
        open_splits(str(tmp_path), ("train", "val"))
    (told,) = messages(caplog)
    assert "1 of the 1 ids of split test" in told
    (tmp_path / "two").mkdir()
    parquet(tmp_path / "two" / "train.parquet", ["p1"])
    (tmp_path / "two" / "test.parquet").write_bytes(b"none")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "two" / "val.parquet")
    caplog.clear()
    with caplog.at_level("WARNING", logger="absl"):
        open_splits(str(tmp_path / "two"), ("train",), fractions={})
    assert not caplog.records


def test_a_jobs_rejects_beside_the_data_are_none(tmp_path):
    write(tmp_path / "train.jsonl", "a")
    for name in ("rejects.jsonl", "rejects.3.jsonl", "answers.jsonl.rejects.jsonl"):
        (tmp_path / name).write_text('{"file": "x.jsonl", "line": 1, "reason": "no id"}\n')
    rejects = Rejects()
    assert ids_of(open_source(str(tmp_path), rejects=rejects)) == ["a"]
    assert rejects.total == 0


def test_validation_and_dev_are_val(tmp_path):
    write(tmp_path / "validation.jsonl", ["v"])
    assert ids_of(open_source(str(tmp_path), "val")) == ["v"]
    with pytest.raises(UserError, match=r"no split 'test'"):
        open_source(str(tmp_path), "test")
    write(tmp_path / "notes.jsonl", ["n"])
    with pytest.raises(UserError, match=r"notes\.jsonl, which names none"):
        open_source(str(tmp_path))


def test_bad_lines_are_rejected_by_line_and_the_good_ones_stay(tmp_path):
    good = json.dumps({"id": "a", "sources": {"title": "x"}}).encode()
    lines = [
        b"\xef\xbb\xbf" + good,  # 1, with the mark that Excel writes
        b"",  # 2, blank: no record, no reject
        b'{"sources": {"title": "x"}}',  # 3
        good,  # 4: the id again
        b'{"id": "b", "sources": {"title": "\xff"}}',  # 5
        b"[1, 2]",  # 6
        json.dumps({"id": "c", "sources": {"image": "../x.jpg"}}).encode(),  # 7
        json.dumps({"id": "d", "sources": {"title": ""}}).encode(),  # 8, empty: fine
        b'{"id": "e", "sources": {"tit',  # 9: cut short
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    rejects = Rejects(tmp_path / "rejects.jsonl", 1.0)
    source = open_source(str(path), rejects=rejects)
    assert ids_of(source) == ["a", "d"] and source[1].sources == {}
    listed = [json.loads(x) for x in rejects.path.read_text().splitlines()]
    found = {entry["line"]: entry["reason"] for entry in listed}
    assert sorted(found) == [3, 4, 5, 6, 7, 9]
    assert found[3] == "no id" and found[4] == "duplicate id"
    assert "not UTF-8" in found[5] and "not an object" in found[6]
    assert "leads outside" in found[7] and "cut short" in found[9]
    assert {entry["file"] for entry in listed} == {str(path)}
    assert rejects.seen == 8


def test_too_many_bad_lines_stop_the_job(tmp_path):
    path = write(tmp_path / "a.jsonl", "aabc")
    with pytest.raises(UserError, match=r"1 of 4 records.*duplicate id.*line 2"):
        open_source(str(path), rejects=Rejects(None, 0.2))


def test_an_empty_file_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [])
    with pytest.raises(UserError, match="no record in"):
        open_source(str(path))


def test_a_file_that_changes_is_an_error_and_not_another_record(tmp_path):
    path = write(tmp_path / "a.jsonl", "abc")
    source = open_source(str(path))
    path.write_text("x" * 200)
    with pytest.raises(UserError, match="changed while it was in use"):
        source[2]


def test_misspelt_paths_and_formats_name_the_nearest(tmp_path):
    write(tmp_path / "products.jsonl", "a")
    with pytest.raises(UserError, match=r"no such data.*near it: .*products\.jsonl"):
        open_source(str(tmp_path / "product.jsonl"))
    for spec in (str(tmp_path / "gone" / "far" / "x.jsonl"), f"fashion:{tmp_path / 'gone'}"):
        with pytest.raises(UserError) as refused:
            open_source(spec)
        path = spec.removeprefix("fashion:")
        assert str(refused.value) == (
            f"no such data: {path}; {tmp_path} holds products.jsonl; "
            "give the path of a data file or folder"
        )
    with pytest.raises(UserError, match=r"unknown source format 'json'.*did you mean 'jsonl'"):
        open_source("json:products")
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UserError, match=r"cannot tell the format.*\.jsonl file, one JSON object a"):
        open_source(str(tmp_path / "x.txt"))
    for name in ("jsonl", "wdc_pave"):
        with pytest.raises(UserError, match=r"x\.txt does not end in \.jsonl or \.ndjson.*rename"):
            open_source(f"{name}:{tmp_path / 'x.txt'}")
    with pytest.raises(UserError, match=r"products\.jsonl does not end in \.parquet"):
        open_source(f"parquet:{tmp_path / 'products.jsonl'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"cannot tell the format of .*empty: no styles\.csv"):
        open_source(str(tmp_path / "empty"))
    assert ids_of(open_source(f"jsonl:{tmp_path / 'products.jsonl'}")) == ["a"]


def test_two_formats_in_a_folder_are_not_guessed(tmp_path):
    write(tmp_path / "a.jsonl", "a")
    (tmp_path / "b.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"several formats.*'jsonl:.*'parquet:"):
        open_source(str(tmp_path))


def test_the_catalogue_needs_no_path():
    parts = open_splits("catalogue:products=20", ("train", "val"))
    assert len(parts["train"]) == 20 and parts["val"][0].id != parts["train"][0].id
    assert "val" in own_splits("catalogue")
