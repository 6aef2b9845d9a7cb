"""What records are read from is known by sizes and times, in each format."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moemoe_jax.data.sources import open_source


def jsonl(folder):
    lines = [{"id": n, "sources": {"images": ["img/a.jpg", "img/b.jpg"]}} for n in range(9)]
    path = folder / "in.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def parquet(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": str(n), "sources": {"images": ["img/a.jpg", "img/b.jpg"]}} for n in range(9)]
    path = folder / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("write", [jsonl, parquet])
@pytest.mark.parametrize("split", [None, "train"])
def test_a_changed_image_changes_the_digest(tmp_path, write, split):
    images = tmp_path / "img"
    images.mkdir()
    for name in "ab":
        (images / f"{name}.jpg").write_bytes(b"12")
        os.utime(images / f"{name}.jpg", ns=(0, 10**18))
    path = write(tmp_path)

    def digest():
        return open_source(str(path), split).files_digest

    seen = [digest(), digest()]
    assert seen.pop() == seen[0]
    (images / "other.jpg").write_bytes(b"named by no record")
    assert digest() == seen[0]
    (images / "b.jpg").write_bytes(b"123")
    os.utime(images / "b.jpg", ns=(0, 10**18))
    seen.append(digest())
    os.utime(images / "b.jpg", ns=(0, 10**18 + 1))
    seen.append(digest())
    (images / "b.jpg").unlink()
    seen.append(digest())
    assert len(set(seen)) == 4


def test_records_that_hold_their_images_depend_on_no_other_file(tmp_path):
    rows = [{"id": "1", "sources": {"image": b"x"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    before = open_source(str(tmp_path / "a.parquet")).files_digest
    os.utime(tmp_path / "a.parquet", ns=(0, 0))
    assert open_source(str(tmp_path / "a.parquet")).files_digest == before
