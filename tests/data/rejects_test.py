from concurrent.futures import ThreadPoolExecutor
import json
import pickle

import pytest

from moemoe_jax.data.rejects import Rejects
from moemoe_jax.errors import UserError


def test_the_same_reject_counts_once(tmp_path):
    rejects = Rejects(tmp_path / "work" / "rejects.jsonl")
    for _ in range(2):
        rejects.add("a.jsonl", 3, "no id")
        rejects.add("a.jsonl", 4, "not JSON: column 7", id="x")
        rejects.add("b.jsonl", 9, "not JSON: column 1")
    assert rejects.total == 3
    assert rejects.reasons == {"no id": 1, "not JSON": 2}
    lines = [json.loads(line) for line in rejects.path.read_text().splitlines()]
    assert lines[:2] == [
        {"file": "a.jsonl", "line": 3, "reason": "no id"},
        {"file": "a.jsonl", "line": 4, "reason": "not JSON: column 7", "id": "x"},
    ]
    assert len(lines) == 3


def test_an_image_that_several_records_share_counts_for_each(tmp_path):
    rejects = Rejects(tmp_path / "rejects.jsonl")
    for number in (1, 2, 2):
        rejects.add("img/none.jpg", 0, "image not found: no such file", id=f"p{number}")
    assert rejects.total == 2
    again = Rejects(rejects.path)
    again.add("img/none.jpg", 0, "image not found: no such file", id="p2")
    assert len(rejects.path.read_text().splitlines()) == 2


def test_a_resumed_job_counts_again_but_does_not_write_again(tmp_path):
    path = tmp_path / "rejects.jsonl"
    Rejects(path).add("a", 1, "no id")
    with path.open("a") as out:
        out.write('{"file": "a", "li')  # killed while it wrote
    rejects = Rejects(path)
    rejects.add("a", 1, "no id")
    rejects.add("a", 2, "no id")
    assert rejects.total == 2
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[2])["line"] == 2


def test_of_several_processes_the_first_writes_what_all_find(tmp_path):
    path = tmp_path / "rejects.jsonl"
    first, second = Rejects(path), Rejects(path, process=1)
    for rejects in (first, second):
        with rejects.found_by_all():
            rejects.add("records.jsonl", 3, "no id")
        rejects.add("records.jsonl", 3, "no id")
    second.add("images/7.jpg", 0, "not an image")
    assert (first.total, second.total) == (1, 2)
    assert [json.loads(line)["line"] for line in path.read_text().splitlines()] == [3]
    (line,) = (tmp_path / "rejects.1.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == "images/7.jpg"


def test_too_many_stop_the_job(tmp_path):
    rejects = Rejects(tmp_path / "r.jsonl", max_fraction=0.5)
    rejects.saw("a", 2)
    rejects.saw("a", 2)  # the same file again
    rejects.add("a", 1, "no id")
    rejects.check()  # 1 of 2 is not above 50 %
    rejects.add("a", 2, "not JSON: x")
    rejects.add("b", 7, "not JSON: y")
    rejects.saw("b", 2)
    assert rejects.seen == 4
    with pytest.raises(UserError) as error:
        rejects.check()  # 3 of 4
    text = str(error.value)
    for part in (
        "3 of 4",
        "75.0%",
        "50.0%",
        "2 of them",
        "not JSON",
        "a line 2 (x)",
        str(rejects.path),
    ):
        assert part in text
    assert "outside of training: --max_reject_fraction" in text
    assert "raise --config.data.max_reject_fraction" in text and "\n" not in text
    rejects.check(seen=6)


def test_a_file_as_a_whole_has_no_line(tmp_path):
    rejects = Rejects(None, max_fraction=0.0)
    rejects.add("7.jpg", 0, "not an image", id="7")
    with pytest.raises(UserError, match=r"not an image, first in 7\.jpg; mend"):
        rejects.check(1)


def test_no_rejects_are_never_too_many():
    Rejects(None, 0.0).check(0)
    with pytest.raises(UserError, match="from 0 to 1"):
        Rejects(None, 1.5)


def test_many_threads_lose_nothing(tmp_path):
    rejects = Rejects(tmp_path / "r.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: rejects.add("a", i % 50, "no id"), range(200)))
    assert rejects.total == rejects.reasons["no id"] == 50
    assert len({json.loads(x)["line"] for x in rejects.path.read_text().splitlines()}) == 50


def test_a_worker_process_gets_a_copy(tmp_path):
    rejects = Rejects(tmp_path / "r.jsonl")
    rejects.add("a", 1, "no id")
    copy = pickle.loads(pickle.dumps(rejects))
    copy.add("a", 2, "no id")
    assert (rejects.total, copy.total) == (1, 2)
