import os
import sys

import pytest

from launch import process

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
