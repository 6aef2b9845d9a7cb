"""Where the time goes: seconds summed by name, and their shares of each interval."""

from collections.abc import Callable, Iterator
import contextlib
import os
from pathlib import Path
import threading
import time

_IMPORTED = time.time()


class Ledger:
    """Sums seconds under names such as startup, compile, input_wait, step, evaluation and save.

    Work on an accelerator is asynchronous: what is measured is the time for which the host waits,
    so the time of a step belongs to whoever blocks on its result.

    Args:
      before: seconds that had gone by already, and are counted as `startup`.
      clock: of the seconds.
    """

    def __init__(self, before: float = 0.0, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._totals: dict[str, float] = {"startup": before} if before else {}
        self._marked = dict(self._totals)
        self._mark = clock()
        self._start = self._mark - before
        self._open: list[tuple[str, float]] = []  # what is measured now, the innermost last
        self._lock, self._beats = threading.Lock(), 0

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time spent inside the `with` block to `name`, also when it raises."""
        self._open.append((name, self._clock()))
        self.beat()
        try:
            yield
        finally:
            with self._lock:
                _, start = self._open.pop()
                self._totals[name] = self._totals.get(name, 0.0) + self._clock() - start
            self.beat()

    def beat(self) -> None:
        """Says that something was done: the run is not stuck."""
        self._beats += 1

    @property
    def activity(self) -> tuple[str, int]:
        """The name that is measured now ("other" for none), and a count that grows with progress.

        Another thread may read it.
        """
        return next((name for name, _ in reversed(self._open)), "other"), self._beats

    def totals(self) -> dict[str, float]:
        """Returns the seconds of each name since the ledger was made, and `elapsed` in all.

        What is measured now counts up to now. Another thread may ask.
        """
        with self._lock:
            now, totals = self._clock(), dict(self._totals)
            for name, start in self._open:
                totals[name] = totals.get(name, 0.0) + now - start
        return {**totals, "elapsed": now - self._start}

    def interval(self, examples: int = 0) -> dict[str, float]:
        """Closes the interval since the last call (or the start) and begins a new one.

        Args:
          examples: how many examples were done in it.

        Returns:
          `seconds` of the interval, `examples_per_second`, and `<name>_share` in [0, 1] for each
          name that was ever measured. The rate leaves out compiling, evaluation and saving, which
          do not grow with the number of steps.
        """
        now = self._clock()
        seconds = now - self._mark
        spent = {name: t - self._marked.get(name, 0.0) for name, t in self._totals.items()}
        self._mark, self._marked = now, dict(self._totals)
        training = seconds - sum(spent.get(n, 0.0) for n in ("compile", "evaluation", "save"))
        shares = {f"{n}_share": t / seconds if seconds > 0 else 0.0 for n, t in spent.items()}
        rate = examples / training if training > 0 else 0.0
        return {"seconds": seconds, "examples_per_second": rate, **shares}


def process_began() -> float:
    """The Unix time at which this process was made, before Python ran.

    Linux tells it, in hundredths of a second; elsewhere it is when this module was imported.
    """
    try:
        # Behind the name in parentheses, which may hold blanks, starts field 3; field 22 is it.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, AttributeError, ValueError, IndexError):
        return _IMPORTED
