"""Signals, sent to a process that has not loaded JAX: as in the first seconds of a training."""

import signal
import subprocess
import sys

import pytest

from tests.launch.cli import ROOT

HEAD = """
import os, signal, sys, threading, time
from moemoe_jax.training.stopping import Stop
stop = Stop().listen()
assert "jax" not in sys.modules
def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.05)
def asked(limit=20):
    end = time.monotonic() + limit
    while stop._asked is None and time.monotonic() < end:
        time.sleep(0.01)
    return stop._asked
"""


def run(body):
    return subprocess.run(
        [sys.executable, "-c", HEAD + body],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_with_nothing_to_save_it_exits_although_the_main_thread_is_in_a_long_call(name):
    # The signal ends the first call; the second keeps the main thread from its handlers.
    done = run(
        f"threading.Timer(0.1, os.kill, (os.getpid(), signal.{name})).start()\n"
        "import ctypes; c = ctypes.CDLL(None); c.poll(None, 0, 600_000), c.sleep(600)\n"
    )
    assert done.returncode == 75
    assert f"train: stopped by {name} before a step was taken" in done.stderr


def test_with_something_to_save_it_waits_to_be_asked():
    done = run(
        "stop.keep(); send(signal.SIGUSR1, signal.SIGTERM)\n"
        "assert asked() == signal.SIGUSR1; print(stop.reason)\n"
    )
    assert (done.returncode, done.stdout) == (0, "by SIGUSR1\n"), done.stderr
    assert done.stderr.count("SIGUSR1: saving") == 1
    assert "(SIGINT twice: at once)" in done.stderr
    assert "SIGTERM" not in done.stderr


def test_a_second_interrupt_exits_at_once_and_other_signals_are_no_interrupts():
    done = run(
        "stop.keep(); send(signal.SIGTERM, signal.SIGINT, signal.SIGTERM); asked()\n"
        "print('still here', flush=True)\n"
        "send(signal.SIGINT); import ctypes; ctypes.CDLL(None).sleep(600)\n"
    )
    assert (done.returncode, done.stdout) == (130, "still here\n"), done.stderr
    assert "interrupted twice" in done.stderr


def test_after_one_interrupt_the_second_is_the_next():
    done = run("stop.keep(); send(signal.SIGINT); assert asked() == signal.SIGINT")
    assert "SIGINT: saving and stopping at the next step (SIGINT again: at once)" in done.stderr


def test_a_forked_child_ends_by_a_signal_without_stopping_its_parent():
    done = run(
        "stop.keep(); child = os.fork()\n"
        "if not child: time.sleep(600)\n"
        "os.kill(child, signal.SIGTERM); _, status = os.waitpid(child, 0)\n"
        "print(os.waitstatus_to_exitcode(status), asked(0.3))\n"
    )
    assert (done.returncode, done.stdout) == (0, f"{-signal.SIGTERM} None\n"), done.stderr


def test_nobody_asks_a_stop_that_does_not_listen():
    from moemoe_jax.training.stopping import Stop

    stop = Stop()
    assert not stop.agreed()
    stop._asked = signal.SIGTERM
    assert stop.agreed()
    stop._asked = None
    assert stop.agreed()  # once agreed on, it stays
