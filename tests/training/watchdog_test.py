import subprocess
import sys
import threading

from moemoe_jax.training.timing import Ledger
from moemoe_jax.training.watchdog import Watchdog
from tests.launch.cli import ROOT

HEAD = """
import ctypes, sys, time
from moemoe_jax.training.timing import Ledger
from moemoe_jax.training.watchdog import Watchdog
ledger = Ledger()
"""


def run(body):
    return subprocess.run(
        [sys.executable, "-c", HEAD + body],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_stall_is_reported_with_its_phase_and_the_stacks_of_all_threads(tmp_path):
    ledger, path = Ledger(), tmp_path / "log"

    def wait_for_two_reports():
        while path.read_text().count("still waiting") < 2:
            threading.Event().wait(0.02)

    with (
        path.open("w") as log,
        Watchdog(ledger, stall=0.1, stream=log),
        ledger.measure("evaluation"),
    ):
        wait_for_two_reports()
    text = path.read_text()
    assert "in phase 'evaluation'" in text
    assert "in wait_for_two_reports" in text


def test_a_process_that_is_stuck_is_given_up():
    done = run("with Watchdog(ledger, 0, abort=1), ledger.measure('step'): time.sleep(600)\n")
    assert done.returncode == 70
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("stall: ")]
    assert "in phase 'step'" in line and "giving up" in line


def test_a_call_that_keeps_the_lock_of_python_is_reported_too():
    done = run(
        "def stuck_here(): ctypes.PyDLL(None).sleep(600)\n"
        "with Watchdog(ledger, 0, abort=0.2): stuck_here()\n"
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in stuck_here" in done.stderr


def test_progress_is_no_stall(tmp_path):
    ledger, beats = Ledger(), threading.Event()
    with (tmp_path / "log").open("w+") as log:
        with Watchdog(ledger, stall=60.0, stream=log):
            for _ in range(20):
                beats.wait(0.01)
                ledger.beat()
        log.seek(0)
        assert log.read() == ""


def test_off_there_is_no_thread():
    with Watchdog(Ledger(), stall=0.0):
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}
