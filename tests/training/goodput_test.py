import json
import signal
import subprocess
import sys
import threading

import pytest

from moemoe_jax.errors import Stopped
from moemoe_jax.training import goodput
from moemoe_jax.training.goodput import Goodput, Start, account, read_starts
from moemoe_jax.training.timing import Ledger
from tests.launch.cli import ROOT


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def start(began, last, from_step, seconds, saved=None):
    return Start(began, last, from_step, from_step, seconds=seconds, saved=saved or {})


def test_what_a_later_start_does_again_is_lost_and_so_is_the_time_between():
    starts = [
        # 0 s to 100 s; at its checkpoint of step 40 it had run for 70 s.
        start(
            0.0, 100.0, 0, {"startup": 20.0, "step": 80.0}, {40: {"startup": 20.0, "step": 50.0}}
        ),
        # Made at 110 s, goes on from step 40, is killed at 150 s without a checkpoint.
        start(110.0, 150.0, 40, {"startup": 30.0, "step": 10.0}),
        # Made at 155 s, goes on from step 40 as well, and is at the end at 255 s.
        start(155.0, 255.0, 40, {"startup": 25.0, "step": 75.0}),
    ]
    first = account(starts[:1])
    assert first == {"startup": 20.0, "step": 80.0, "repeated": 0.0, "down": 0.0}
    # 30 s of the first start are repeated, and 10 s nobody ran.
    second = account(starts[:2])
    assert second == {"startup": 50.0, "step": 60.0, "repeated": 30.0, "down": 10.0}
    # Of the second start nothing is left: 40 s more are repeated, and 5 s nobody ran.
    third = account(starts)
    assert third == {"startup": 45.0, "step": 125.0, "repeated": 70.0, "down": 15.0}
    assert sum(third.values()) == 255.0  # the time since the first start began


def test_going_back_behind_a_damaged_checkpoint_loses_two_starts():
    starts = [
        start(0.0, 50.0, 0, {"step": 50.0}, {4: {"step": 20.0}, 8: {"step": 40.0}}),
        start(50.0, 90.0, 8, {"step": 40.0}, {12: {"step": 30.0}}),
        start(90.0, 100.0, 4, {"step": 10.0}),
    ]
    # From step 4: 20 s of the first start count, of the second none.
    assert account(starts) == {"step": 30.0, "repeated": 70.0, "down": 0.0}


def test_a_start_that_had_no_state_yet_is_repeated_and_takes_nothing_from_others():
    starts = [
        start(0.0, 50.0, 0, {"step": 50.0}, {4: {"step": 20.0}, 8: {"step": 40.0}}),
        start(51.0, 60.0, None, {"startup": 9.0}),
        start(62.0, 70.0, None, {"startup": 8.0}),
    ]
    # While nobody knows where it goes on, the first start keeps what it did behind step 8 as well.
    assert account(starts) == {"step": 50.0, "startup": 17.0, "repeated": 0.0, "down": 3.0}
    again = account([*starts, start(70.0, 75.0, 8, {"startup": 5.0})])
    assert again == {"step": 40.0, "startup": 5.0, "repeated": 10.0 + 9.0 + 8.0, "down": 3.0}


def test_a_start_with_nothing_to_do_leaves_the_book_as_it_was(tmp_path):
    path, clock = tmp_path / "goodput.json", Clock()
    with Goodput(path, Ledger(clock=clock), 1000.0, clock=clock) as book:
        book.goes_on_from(0)
    before = path.read_text()
    with Goodput(path, Ledger(clock=clock), 1000.0, clock=clock) as book:
        assert len(read_starts(path)) == 2
        book.withdraw()
    assert path.read_text() == before


def test_a_start_writes_what_it_did_and_how_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(goodput, "_EVERY", 1000.0)
    path, clock = tmp_path / "goodput.json", Clock()
    ledger = Ledger(before=5.0, clock=clock)
    with pytest.raises(Stopped), Goodput(path, ledger, 995.0, clock=clock) as book:
        assert read_starts(path)[0].from_step is None
        book.goes_on_from(0)
        with ledger.measure("step"):
            clock.now += 10.0
        book.saved(2)
        clock.now += 2.0
        before = path.stat().st_mtime_ns
        book.update(3)
        assert path.stat().st_mtime_ns == before  # a step writes nothing
        assert read_starts(path)[0].step == 2
        raise Stopped
    (row,) = json.loads(path.read_text())["starts"]
    assert row["from_step"] == 0
    assert row["seconds"] == {"startup": 5.0, "step": 10.0, "other": 2.0}
    assert row["saved"] == {"2": {"startup": 5.0, "step": 10.0, "other": 0.0}}
    assert (row["began"], row["last"], row["step"], row["end"]) == (995.0, 1012.0, 3, "stopped")


KILLED = """
import os, pathlib, signal, sys, threading
from moemoe_jax.training import goodput
from moemoe_jax.training.timing import Ledger
goodput._EVERY = 0.01
path, now = pathlib.Path(sys.argv[1]), 0.0
ledger = Ledger(before=5.0, clock=lambda: now)
with goodput.Goodput(path, ledger, 995.0, clock=lambda: 1000.0 + now) as book:
    book.goes_on_from(0)
    with ledger.measure("step"):
        now += 2.0
    book.update(1)
    with ledger.measure("compile"):
        now += 60.0
        while goodput.read_starts(path)[0].last < 1062.0:
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_phase_that_a_start_is_killed_in_is_no_down_time(tmp_path):
    path = tmp_path / "goodput.json"
    done = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    (killed,) = read_starts(path)
    assert killed.seconds == {"startup": 5.0, "step": 2.0, "compile": 60.0, "other": 0.0}
    assert (killed.last, killed.step, killed.end) == (1062.0, 1, "")
    # Started again 4 s later, from the same step: all is repeated, and 4 s nobody ran.
    again = start(1066.0, 1070.0, 0, {"startup": 4.0})
    assert account([killed, again]) == {"startup": 4.0, "repeated": 67.0, "down": 4.0}


def test_a_full_disk_stops_no_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(goodput, "_EVERY", 0.01)
    written, full = threading.Event(), [True] * 3

    def write(path, text):
        if full:
            full.pop()
            raise OSError(28, "No space left on device", str(path))
        written.set()

    with Goodput(tmp_path / "goodput.json", Ledger(), 0.0):
        monkeypatch.setattr(goodput, "write_atomically", write)
        assert written.wait(60)
    assert not full


def test_a_full_disk_does_not_hide_what_ended_the_run(tmp_path, monkeypatch):
    def write(path, text):
        raise OSError(28, "No space left on device", str(path))

    with pytest.raises(ValueError, match="first"), Goodput(tmp_path / "g.json", Ledger(), 0.0):
        monkeypatch.setattr(goodput, "write_atomically", write)
        raise ValueError("first")


def test_the_next_start_tells_of_all(tmp_path):
    path, clock = tmp_path / "goodput.json", Clock()
    with Goodput(path, Ledger(clock=clock), 1000.0, clock=clock) as book:
        book.goes_on_from(0)
        clock.now += 10.0
        book.saved(4)
        clock.now += 6.0
    assert len(book.lines()) == 1
    clock.now += 4.0
    ledger = Ledger(clock=clock)
    with (
        pytest.raises(ZeroDivisionError),
        Goodput(path, ledger, clock.now, clock=clock) as book,
    ):
        book.goes_on_from(4)
        with ledger.measure("step"):
            clock.now += 20.0
        assert book.lines() == [
            "time of this start: 20 s  step 20 s  other 0 s  goodput 100%",
            "time of all 2 starts: 40 s  other 10 s  step 20 s  "
            "lost to restarts 10 s (repeated 6 s, down 4 s)  goodput 50%",
        ]
        raise ZeroDivisionError
    assert [row.end for row in read_starts(path)] == ["done", "failed: ZeroDivisionError"]


@pytest.mark.parametrize("text", ["{", "[]", '{"starts": [{"began": 1}]}'])
def test_a_book_that_cannot_be_read_is_put_aside(tmp_path, text):
    path = tmp_path / "goodput.json"
    path.write_text(text)
    with Goodput(path, Ledger(), 0.0):
        pass
    assert len(read_starts(path)) == 1
    assert (tmp_path / "goodput.json.damaged").read_text() == text


def test_another_process_writes_nothing(tmp_path):
    path = tmp_path / "goodput.json"
    with Goodput(path, Ledger(), 0.0, write=False) as book:
        book.saved(1)
        book.withdraw()
    assert not path.exists()
