"""What the compiling process answers, and the tables that are made of it."""

import pytest

from moemoe_jax.aot import report
from moemoe_jax.aot.chips import CHIPS
from moemoe_jax.aot.worker import overflow

GIB = 2**30


@pytest.mark.parametrize(
    ("message", "sizes"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (27.62G) exceeds available HBM (15.75G).",
            (27.62 * GIB, 15.75 * GIB),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 30.17G of 15.75G hbm. Exceeded hbm capacity by 14.42G.",
            (30.17 * GIB, 15.75 * GIB),
        ),
        ("RESOURCE_EXHAUSTED: something else", None),
        ("INTERNAL: used 3.0G of 2.0G hbm", None),
    ],
)
def test_a_compiler_that_runs_out_of_memory_is_understood(message, sizes):
    assert overflow(message) == sizes


def program(**changes):
    """A program of one second of products, half a second of memory and two of the interconnect."""
    chip = CHIPS["v5e"]
    return {
        "fits": True,
        "seconds": 3.0,
        "arguments": 2 * GIB,
        "temporaries": 5 * GIB,
        "results": 0,
        "code": GIB // 4,
        "peak": 7 * GIB,
        "flops": chip.flops,
        "hbm_bytes": chip.hbm_bandwidth / 2,
        "collectives": {"all-reduce": {"count": 12.0, "bytes": 2 * chip.ici_bandwidth}},
        "gathers": [{"shape": "bf16[64,64]", "bytes": 2**21, "times": 6, "source": "dot"}],
        **changes,
    }


def result(**programs):
    return {
        "topology": "v5e:2x2",
        "mesh": {"data": 2, "fsdp": 2},
        "devices": 4,
        "held": {"trained parameters": GIB // 4, "frozen parameters": 0, "optimizer state": GIB},
        "programs": programs,
        "formula": {"model": 3.2 * 197e12, "again": 0.8 * 197e12, "total": 4 * 197e12},
        "minimum": {"all-reduce": 160e9, "all-gather": 0.0, "all-to-all": 1e9},
    }


def test_the_bounds_are_the_least_time_of_each_resource():
    least = report.bounds(program(), CHIPS["v5e"])
    assert (least.compute, least.hbm, least.ici) == (1.0, 0.5, 2.0)
    assert (least.step, least.name) == (2.0, "interconnect")


def test_the_tables_say_what_was_found():
    text = report.report(result(train=program()), CHIPS["v5e"], products=32)
    rows = [line.split() for line in text.splitlines()]
    assert "v5e:2x2: data=2 fsdp=2, 32 products a step (8 a chip)" in text
    # arguments, temporaries, other, peak, share of 16 GiB.
    assert rows[3][:6] == ["train", "2.00", "5.00", "0.25", "7.00", "44%"]
    assert "kept from step to step, GiB: trained parameters 0.25, optimizer state 1.00\n" in text
    assert ["with", "recomputation", "197000.0", "197000.0", "1.000"] in rows
    assert ["forward", "and", "backward", "157600.0", "1.250"] in rows
    assert ["all-reduce", "12", "190734.9", "152587.9", "1.25"] in rows
    assert ["all-to-all", "0", "0.0", "953.7", "0.00"] in rows
    assert "bound by interconnect: at most 16 products/s" in text
    assert ["bf16[64,64]", "2.0", "6", "dot"] in rows


def test_what_does_not_fit_is_a_row_like_any():
    refused = {"fits": False, "needs": 27.5 * GIB, "available": 15.75 * GIB}
    found = result(train=refused, answer=program())
    text = report.report(found, CHIPS["v5e"], products=32)
    assert not report.fits(found) and report.fits(result(answer=program()))
    assert "does not fit: needs 27.50 of 15.75 GiB" in text
    assert "answer" in text and "a step takes" not in text
