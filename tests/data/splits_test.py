from collections import Counter

import numpy as np
import pytest

from moemoe_jax.data.records import Record
from moemoe_jax.data.splits import SplitSource, id_hash, splits_of, unit_points
from moemoe_jax.errors import UserError

IDS = [f"p{i}" for i in range(2000)]
HASHES = np.array([id_hash(i) for i in IDS], np.uint64)


class Listed:
    """A source that keeps no hashes."""

    name, splits = "listed", ()

    def __len__(self):
        return len(IDS)

    def __getitem__(self, index):
        return Record(IDS[index])


def test_the_split_of_an_id_never_changes():
    # Written down once: a change of the hash would mix the test set of old models into training.
    assert id_hash("p0") == 17613450280036892301
    splits = splits_of(HASHES)
    assert np.flatnonzero(splits[:40] == "val").tolist() == [18, 21]
    assert np.flatnonzero(splits[:12] == "test").tolist() == [8]


def test_shares_are_as_asked():
    counts = Counter(splits_of(HASHES).tolist())
    # 2000 ids: 100 +- 10, 400 +- 18, 1500 +- 19 (one standard deviation).
    assert abs(counts["val"] - 100) < 40 and abs(counts["test"] - 400) < 72
    assert sum(counts.values()) == 2000


def test_a_larger_val_takes_nothing_from_test():
    before, after = splits_of(HASHES), splits_of(HASHES, {"val": 0.5, "test": 0.2})
    np.testing.assert_array_equal(before == "test", after == "test")
    assert (after[before == "val"] == "val").all()


def test_seeds_and_purposes_are_independent():
    points = [
        unit_points(HASHES, seed, what) for seed, what in ((0, "split"), (1, "split"), (0, "hide"))
    ]
    for a in range(3):
        assert points[a].min() >= 0 and points[a].max() < 1
        for b in range(a):
            assert abs(np.corrcoef(points[a], points[b])[0, 1]) < 0.1


def test_split_sources_part_the_source():
    parts = {split: SplitSource(Listed(), split) for split in ("train", "val", "test")}
    found = {split: [part[i].id for i in range(len(part))] for split, part in parts.items()}
    assert sorted(i for ids in found.values() for i in ids) == sorted(IDS)
    by_id = dict(zip(IDS, splits_of(HASHES), strict=True))
    assert all(by_id[i] == split for split, ids in found.items() for i in ids)
    assert parts["val"].name == "listed[val]"
    assert parts["val"][-1].id == found["val"][-1]
    assert list(parts["val"].id_hashes()) == [id_hash(i) for i in found["val"]]
    with pytest.raises(IndexError):
        parts["val"][len(parts["val"])]


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="unknown split 'dev'"):
        SplitSource(Listed(), "dev")
    with pytest.raises(UserError, match="'train'; give them for 'val' and 'test'"):
        splits_of(HASHES, {"train": 0.5})
    with pytest.raises(UserError, match="sum to more than 1"):
        splits_of(HASHES, {"val": 0.5, "test": 0.6})
    with pytest.raises(UserError, match="from 0 to 1"):
        splits_of(HASHES, {"val": -0.5})
