"""The search for a remat policy and a batch, on a made-up chip."""

from moemoe_jax.aot.search import POLICIES, search


def chip(room, speed=(1, 1, 1)):
    """Measures: memory grows with the batch, and throughput with it up to the policy's speed."""
    tried = []
    room, speed = (dict(zip(POLICIES, values, strict=True)) for values in (room, speed))

    def measure(remat, batch):
        tried.append((remat, batch))
        if batch > room[remat]:
            return {"fits": False, "note": "does not fit"}
        return {"fits": True, "throughput": speed[remat] * batch / (batch + 4)}

    return measure, tried


def test_batches_double_until_memory_runs_out_and_the_gap_is_halved():
    measure, tried = chip((10, 21, 70), (9, 10, 8))
    rows, best = search(measure, start=4, budget=12)
    assert tried[:3] == [("none", 4), ("none", 8), ("none", 16)]
    assert tried[3:5] == [("dots", 16), ("dots", 32)]
    assert tried[5:8] == [("full", 32), ("full", 64), ("full", 128)]
    # dots at 16 is best: between it and 32, 24 does not fit, 20 does, and 22 does not.
    assert tried[8:] == [("dots", 24), ("dots", 20), ("dots", 22), ("dots", 21)]
    assert (best["remat"], best["batch"]) == ("dots", 21) and best in rows


def test_the_batch_shrinks_where_nothing_fits():
    measure, tried = chip((0, 1, 3))
    _, best = search(measure, start=8, budget=6)
    assert tried == [("none", 8), ("dots", 8), ("full", 8), ("full", 4), ("full", 2), ("full", 3)]
    assert best["batch"] == 3


def test_no_more_is_compiled_than_allowed():
    measure, tried = chip((999, 999, 999))
    search(measure, start=1, budget=5)
    assert [remat for remat, _ in tried] == ["none", "none", "none", "dots", "full"]
    measure, tried = chip((0, 0, 0))
    assert search(measure, start=64, budget=5)[1] is None
    assert len(tried) == 5
