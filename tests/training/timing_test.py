import subprocess
import sys
import time

import pytest

from moemoe_jax.training.timing import Ledger, process_began
from tests.launch.cli import ROOT


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_shares_of_each_interval_by_hand():
    clock = Clock()
    ledger = Ledger(clock=clock)
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
    ledger = Ledger(clock=clock)
    assert ledger.interval() == {"seconds": 0.0, "examples_per_second": 0.0}
    with pytest.raises(KeyError), ledger.measure("save"):
        clock.now += 3.0
        raise KeyError
    assert ledger.totals()["save"] == 3.0


def test_what_went_before_is_start_up_and_no_part_of_an_interval():
    clock = Clock()
    ledger = Ledger(before=7.0, clock=clock)
    with ledger.measure("startup"):
        clock.now += 2.0
    assert ledger.totals() == {"startup": 9.0, "elapsed": 9.0}
    assert ledger.interval() == {"seconds": 2.0, "examples_per_second": 0.0, "startup_share": 1.0}


def test_what_is_measured_now_counts_up_to_now_and_once():
    clock = Clock()
    ledger = Ledger(clock=clock)
    with ledger.measure("compile"):
        clock.now += 5.0
    with ledger.measure("compile"):
        clock.now += 3.0
        assert ledger.totals() == {"compile": 8.0, "elapsed": 8.0}
        clock.now += 1.0
        with ledger.measure("save"):
            clock.now += 2.0
            assert ledger.totals() == {"compile": 11.0, "save": 2.0, "elapsed": 11.0}
    assert ledger.totals() == {"compile": 11.0, "save": 2.0, "elapsed": 11.0}
    # An interval has what has ended alone.
    with ledger.measure("step"):
        clock.now += 1.0
        assert "step_share" not in ledger.interval()


def test_another_thread_sees_the_phase_and_that_it_moves():
    ledger = Ledger()
    before = ledger.activity
    with ledger.measure("evaluation"):
        inside = ledger.activity
        ledger.beat()
        assert ledger.activity != inside
        with ledger.measure("save"):
            assert ledger.activity[0] == "save"
        assert ledger.activity[0] == "evaluation"
    assert (before[0], inside[0], ledger.activity[0]) == ("other", "evaluation", "other")


def test_a_process_knows_when_it_was_made():
    code = "from moemoe_jax.training.timing import process_began; print(process_began())"
    before = time.time()
    text = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    # It is told in hundredths of a second, since a boot whose time is known as well.
    assert before - 0.1 <= float(text) <= time.time() + 0.1
    assert process_began() <= before + 0.1
