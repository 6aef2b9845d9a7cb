import pytest

from moemoe_jax.training.timing import Ledger


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_shares_of_each_interval_by_hand():
    clock = Clock()
    ledger = Ledger(clock)
    with ledger.measure("compile"):
        clock.now += 5.0
    with ledger.measure("input_wait"):
        clock.now += 1.0
    with ledger.measure("step"):
        clock.now += 4.0
    # 10 s in all, 5 of them outside the compilation: 20 examples are 4 a second.
    first = ledger.interval(examples=20)
    assert first == {
        "seconds": 10.0,
        "examples_per_second": 4.0,
        "compile_share": 0.5,
        "input_wait_share": 0.1,
        "step_share": 0.4,
    }
    with ledger.measure("step"):
        clock.now += 2.0
    second = ledger.interval(examples=6)
    assert second["examples_per_second"] == 3.0
    assert (second["compile_share"], second["step_share"]) == (0.0, 1.0)
    assert ledger.totals() == {"compile": 5.0, "input_wait": 1.0, "step": 6.0, "elapsed": 12.0}


def test_an_empty_interval_is_all_zeros_and_an_error_is_still_timed():
    clock = Clock()
    ledger = Ledger(clock)
    assert ledger.interval() == {"seconds": 0.0, "examples_per_second": 0.0}
    with pytest.raises(KeyError), ledger.measure("save"):
        clock.now += 3.0
        raise KeyError
    assert ledger.totals()["save"] == 3.0
