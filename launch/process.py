"""How an entry point's process is set up, before anything heavy is imported."""

import os
from pathlib import Path
import platform
import sys

_HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


def prepare() -> None:
    """Has compiled programs kept between commands, and large arrays put on huge pages.

    What is set in the environment already is left as it is. The programs are kept in
    `~/.cache/moemoe_jax/<host>`, as they are made for its processor.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "moemoe_jax" / (platform.node() or "host")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    name, value = _HUGE_PAGES
    if sys.platform == "linux" and name not in os.environ:
        # A training step on CPU touches its arrays for the first time, every time: with pages of
        # 4 KiB a fourth of its time goes to page faults. The allocator reads this when a process
        # starts, hence the new start; Python has hardly begun.
        os.environ[name] = value
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
