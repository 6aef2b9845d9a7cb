"""The search for a remat policy and a batch, on a made-up chip."""

from moemoe_jax.aot.search import search


def chip(room, speed):
    """Measures: memory grows with the batch, and throughput with it up to the policy's speed."""
    tried = []

    def measure(remat, batch):
        tried.append((remat, batch))
        if batch > room[remat]:
            return {"fits": False, "note": "does not fit"}
        return {"fits": True, "throughput": speed[remat] * batch / (batch + 4)}

    return measure, tried


def test_batches_double_until_memory_runs_out_and_the_gap_is_halved():
    measure, tried = chip({"none": 10, "dots": 21, "full": 70}, dict(none=9, dots=10, full=8))
    rows, best = search(measure, start=4, budget=12)
    assert tried[:3] == [("none", 4), ("none", 8), ("none", 16)]
    assert tried[3:5] == [("dots", 16), ("dots", 32)]
    assert tried[5:8] == [("full", 32), ("full", 64), ("full", 128)]
    # dots at 16 is best: between it and 32, 24 does not fit, 20 does, and 22 does not.
    assert tried[8:] == [("dots", 24), ("dots", 20), ("dots", 22), ("dots", 21)]
    assert (best["remat"], best["batch"]) == ("dots", 21) and best in rows


def test_the_batch_shrinks_where_nothing_fits():
    measure, tried = chip({"none": 0, "dots": 1, "full": 3}, dict(none=1, dots=1, full=1))
    _, best = search(measure, start=8, budget=6)
    assert tried == [("none", 8), ("dots", 8), ("full", 8), ("full", 4), ("full", 2), ("full", 3)]
    assert best["batch"] == 3


def test_no_more_is_compiled_than_allowed():
    measure, tried = chip(dict(none=999, dots=999, full=999), dict(none=1, dots=1, full=1))
    search(measure, start=1, budget=5)
    assert [remat for remat, _ in tried] == ["none", "none", "none", "dots", "full"]
    measure, tried = chip(dict(none=0, dots=0, full=0), dict(none=1, dots=1, full=1))
    assert search(measure, start=64, budget=5)[1] is None
    assert len(tried) == 5
