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


def test_a_full_cache_keeps_what_it_has():
    cache = BoundedCache(1)
    first, second = np.zeros(2**19, np.uint8), np.ones(2**19, np.uint8)
    cache.put("first", first, first.nbytes)
    cache.put("second", second, second.nbytes)  # with its overhead, one byte too many and more
    assert cache.get("first") is first
    assert cache.get("second") is None
    assert len(cache) == 1
