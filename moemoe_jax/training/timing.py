"""Where the time goes: seconds summed by name, and their shares of each interval."""

from collections.abc import Callable, Iterator
import contextlib
import time


class Ledger:
    """Sums seconds under names such as compile, input_wait, step, evaluation and save.

    Work on an accelerator is asynchronous: what is measured is the time for which the host waits,
    so the time of a step belongs to whoever blocks on its result.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._totals: dict[str, float] = {}
        self._marked: dict[str, float] = {}
        self._start = self._mark = clock()

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time spent inside the `with` block to `name`, also when it raises."""
        start = self._clock()
        try:
            yield
        finally:
            self.add(name, self._clock() - start)

    def add(self, name: str, seconds: float) -> None:
        """Adds `seconds` to `name`."""
        self._totals[name] = self._totals.get(name, 0.0) + seconds

    def totals(self) -> dict[str, float]:
        """Returns the seconds of each name since the ledger was made, and `elapsed` in all."""
        return {**self._totals, "elapsed": self._clock() - self._start}

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
