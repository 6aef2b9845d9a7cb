"""How an entry point's process is set up, before anything heavy is imported."""

import ctypes
import os
from pathlib import Path
import platform
import signal
import sys

_COMPILED = "/jax/core/compile/backend_compile_duration"
_HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


def prepare() -> None:
    """Has compiled programs kept between commands, and large arrays put on huge pages.

    What is set in the environment already is left as it is. The programs are kept in
    `~/.cache/moemoe_jax/<host>`, as they are made for its processor; small ones too, as a model's
    parameters are drawn by dozens of them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "moemoe_jax" / (platform.node() or "host")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    name, value = _HUGE_PAGES
    if sys.platform == "linux" and name not in os.environ:
        # A training step on CPU touches its arrays for the first time, every time: with pages of
        # 4 KiB a fourth of its time goes to page faults. The allocator reads this when a process
        # starts, hence the new start; Python has hardly begun.
        os.environ[name] = value
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def trim_after_compilations() -> None:
    """Has the memory that a long compilation leaves behind given back to the system.

    A large program takes the compiler more than a GiB, which the C library's allocator keeps for
    small objects to come: a training on CPU would never use it, and has its peak soon after. Does
    nothing where the library has no `malloc_trim`.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:
        return
    import jax

    def listen(event: str, seconds: float, **_) -> None:
        if event == _COMPILED and seconds > 1.0:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listen)


def end_at_sigterm() -> None:
    """Has SIGTERM end the process, as it does a process that is alone.

    Where processes have met, JAX keeps the signal for whoever asks its coordination service for it,
    as a training does.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def abort_without_stacks() -> None:
    """Has SIGABRT end the process as the system does, without the stacks of Python's threads.

    JAX aborts a process whose coordinator is gone, from a thread of its own. Absl has Python show
    all stacks then, which reads those of threads that run on: now and then that ends by SIGSEGV,
    and what JAX said of the cause is pages further up.
    """
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
