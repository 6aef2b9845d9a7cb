import errno
import os
import re

import ml_dtypes
import numpy as np
import pytest

from moemoe_jax.errors import UserError
from moemoe_jax.training.kept_rows import KeptRows, RowsOnDisk, bytes_of

SHAPES = [((2, 3), np.dtype(ml_dtypes.bfloat16)), ((4,), np.dtype(bool))]


def row(number):
    rng = np.random.default_rng(number)
    return [rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16), rng.random(4) < 0.5]


@pytest.fixture
def opened(tmp_path):
    """Opens the folder, of three rows, as a start of the run does; what it says, by the way."""

    def open_rows(fingerprint=None, capacity=3):
        said = []
        folder = tmp_path / "kept"
        rows = RowsOnDisk(SHAPES, capacity, folder, fingerprint or {"the data": "a"}, said.append)
        return rows, said

    return open_rows


def assert_has(rows, numbers):
    for found, wanted in zip(
        rows.take(numbers, {}), zip(*map(row, numbers), strict=True), strict=True
    ):
        assert found.dtype == wanted[0].dtype
        np.testing.assert_array_equal(found, np.stack(wanted))


def test_rows_are_kept_until_it_is_full_and_then_stay():
    assert bytes_of(SHAPES) == 2 * 3 * 2 + 4
    rows = KeptRows(SHAPES, 2)
    for number in (7, 3, 7, 5):
        rows.put(number, row(number))
    assert (rows.names, 3 in rows, 5 in rows, len(rows)) == ([7, 3], True, False, 2)
    assert_has(rows, [3, 7, 3])
    found = rows.take([5, 3], {5: row(5)})
    np.testing.assert_array_equal(found[1], np.stack([row(5)[1], row(3)[1]]))
    with pytest.raises(KeyError):
        rows.take([5], {})


def test_the_next_start_finds_what_was_flushed(opened):
    rows, said = opened()
    rows.put(12, row(12), digest=2**64 - 1)
    rows.flush()
    rows.put(4, row(4), digest=5)  # and the process dies
    again, more = opened()
    assert (again.names, again.earlier) == ([12], {12: 2**64 - 1})
    assert_has(again, [12])
    again.put(9, row(9), digest=1)
    again.flush()
    last, rest = opened()
    assert last.earlier == {12: 2**64 - 1, 9: 1}
    assert_has(last, [9, 12])
    assert said == more == rest == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: None, "the data, room changed"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "JSONDecodeError"),
        (lambda folder: (folder / "rows.npy").write_bytes(b""), "EOFError|ValueError"),
        (lambda folder: os.truncate(folder / "array-1", 11), "a file is damaged"),
        (lambda folder: (folder / "array-0").unlink(), "a file is damaged"),
    ],
)
def test_what_does_not_fit_is_made_anew_and_said(opened, change, reason):
    rows, _ = opened()
    rows.put(1, row(1))
    rows.flush()
    change(rows.folder)
    other = {"fingerprint": {"the data": "b"}, "capacity": 2} if "changed" in reason else {}
    again, (line,) = opened(**other)
    assert line.startswith(f"encodings: what {rows.folder} holds is of no use (")
    assert len(again) == 0 and re.search(reason, line)
    again.put(2, row(2))
    again.flush()
    assert opened(**other)[0].names == [2]


def test_a_disk_that_is_full_says_so_before_anything_is_written(opened, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"kept cannot be written: No space left on device; make"):
        opened()


def test_what_is_discarded_is_not_there_for_the_next_start(opened):
    rows, _ = opened()
    rows.put(1, row(1))
    rows.flush()
    rows.discard()
    again, said = opened()
    assert (len(again), said) == (0, [])
