import os
import signal
import subprocess
import sys
import types

import jax
import pytest

from launch import process
from tests.launch.cli import ROOT

NAMES = (
    "GLIBC_TUNABLES",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)


@pytest.fixture
def starts(monkeypatch, tmp_path):
    """The command lines that the process is started again with."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what `prepare` sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "launch.train", "--workdir=w"])
    found = []
    monkeypatch.setattr(os, "execv", lambda path, argv: found.append((path, argv)))
    return found


def test_the_process_starts_once_more_with_the_same_command(starts, tmp_path):
    process.prepare()
    process.prepare()
    assert starts == [(sys.executable, [sys.executable, "-m", "launch.train", "--workdir=w"])]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path / "moemoe_jax"))


def test_what_is_set_stays(starts, monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "mine")
    process.prepare()
    assert not starts
    assert {os.environ[name] for name in NAMES} == {"mine"}


def test_a_long_compilation_is_followed_by_a_trim(monkeypatch):
    trims = []
    library = types.SimpleNamespace(malloc_trim=trims.append)
    monkeypatch.setattr(process.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(sys, "platform", "linux")
    process.trim_after_compilations()
    try:
        jax.jit(lambda x: x + 1).lower(1.0).compile()  # takes no second
        assert not trims
        jax.monitoring.record_event_duration_secs(process._COMPILED, 2.0)
        assert trims == [0]
    finally:
        jax.monitoring.clear_event_listeners()


def test_there_are_compilation_events():
    """The name is JAX's, and may change."""
    seen = []
    note = lambda event, seconds, **_: seen.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        jax.jit(lambda x: x * 3).lower(1.0).compile()
    finally:
        jax.monitoring.clear_event_listeners()
    assert process._COMPILED in seen


def test_a_library_without_a_trim_is_left_alone(monkeypatch):
    monkeypatch.setattr(process.ctypes, "CDLL", lambda _: types.SimpleNamespace())
    monkeypatch.setattr(sys, "platform", "linux")
    process.trim_after_compilations()


def test_sigterm_ends_the_process_whoever_had_taken_it():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        process.end_at_sigterm()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("name", "told"),
    [("async_serialize_from_host.<locals>.write_fragment", False), ("ours", True)],
)
def test_only_what_a_failed_write_leaves_unawaited_goes_untold(name, told):
    code = (
        "import sys; from launch import common; common._quiet()\n"
        "async def write(): pass\n"
        "write.__qualname__ = sys.argv[1]; write()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ("was never awaited" in done.stderr) == told
