import json

import numpy as np

from moemoe_jax.data.cache import BoundedCache
from moemoe_jax.data.notes import Notes


def test_notes_count_an_event_of_a_record_or_text_once():
    notes = Notes()
    for key in (3, 3, 0, "red", "red"):
        notes.once("cut", key, f"record {key}")
    notes.add("skipped", 2)
    notes.add("never", 0, "nothing")
    assert notes.counts() == {"cut": 3, "skipped": 2}
    assert notes.lines() == ["note: cut: 3, such as record 3", "note: skipped: 2"]


def test_the_notes_of_parts_come_together_as_those_of_one_job():
    def noted(parts):
        """A start, or a process, that does these parts: each has two records that are cut."""
        notes = Notes()
        for part in parts:
            with notes.within(part):
                for record in (2 * part, 2 * part, 2 * part + 1):
                    notes.once("cut", record, f"record {record}")
                notes.once("question cut", "which color", "which color")
                notes.add("skipped", 3)
        notes.add("of no part", 1)
        return notes

    whole, (first, second) = noted([0, 1, 2]), (noted([0, 2]), noted([1]))
    together = Notes()
    for part, notes in enumerate((first, second, first)):
        together.put(json.loads(json.dumps(notes.take(part))))
        assert notes.take(part) == {}
    # One question, which both starts met, and six records of three parts.
    assert together.counts() == {"cut": 6, "question cut": 1, "skipped": 9}
    assert together.lines()[0] == "note: cut: 6, such as record 0"
    assert whole.counts() == together.counts() | {"of no part": 1}


def test_a_full_cache_keeps_what_it_has():
    cache = BoundedCache(1)
    first, second = np.zeros(2**19, np.uint8), np.ones(2**19, np.uint8)
    cache.put("first", first, first.nbytes)
    cache.put("second", second, second.nbytes)  # with its overhead, one byte too many and more
    assert cache.get("first") is first
    assert cache.get("second") is None
    assert len(cache) == 1
