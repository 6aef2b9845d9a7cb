"""Says so when a run is stuck: in which phase, and where each of its threads stands."""

import faulthandler
import os
import socket
import sys
import threading
import time
from typing import Any, TextIO

from moemoe_jax.errors import STALLED
from moemoe_jax.training.timing import Ledger


class Watchdog:
    """A thread that reports when a ledger shows no progress, and may end the process.

    Every beginning and end of a phase is progress, and so is every batch of an evaluation. A step
    hangs when another process has died and its part of a collective never comes.

    A call that keeps Python's lock stops this thread as well; then faulthandler's own, which needs
    no lock, prints the stacks (and ends the process with status 1 where it is to end).

    Args:
      ledger: of the run.
      stall: seconds without progress to report after, and between reports; 0 for no reports.
      abort: seconds without progress after which the process exits with status 70; 0 for never.
      stream: where reports go, a file of the system's; by default the process's stderr.
    """

    def __init__(
        self, ledger: Ledger, stall: float, abort: float = 0.0, stream: TextIO | None = None
    ):
        self._ledger, self._stall, self._abort = ledger, stall, abort
        self._stream = stream or sys.__stderr__
        self._every = min(1.0, (stall or abort) / 4)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._stall or self._abort:
            self._arm()
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        seen, since = self._ledger.activity, time.monotonic()
        reported = since
        while not self._ended.wait(self._every):
            self._arm()
            now = time.monotonic()
            if self._ledger.activity != seen:
                seen, since, reported = self._ledger.activity, now, now
            if self._abort and now - since >= self._abort:
                self._report(seen[0], now - since, "giving up")
                os._exit(STALLED)
            if self._stall and now - reported >= self._stall:
                reported = now
                self._report(seen[0], now - since, "still waiting")
        faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        """Puts off the report that comes when this thread itself is held up."""
        faulthandler.dump_traceback_later(
            (self._abort or self._stall) + 10 * self._every,
            repeat=not self._abort,
            exit=bool(self._abort),
            file=self._stream,
        )

    def _report(self, phase: str, seconds: float, next_thing: str) -> None:
        where = f"{socket.gethostname()}, process {os.getpid()}"
        print(
            f"stall: no progress for {seconds:.0f} s in phase {phase!r} ({where}), {next_thing}; "
            "the stacks of all threads:",
            file=self._stream,
            flush=True,
        )
        faulthandler.dump_traceback(self._stream, all_threads=True)
