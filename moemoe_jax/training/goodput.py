"""Where the time of a run went, over all of its starts: `goodput.json` in the work directory.

One row a start, with the seconds of each phase so far, and the same at each checkpoint. A start
that goes on from step R throws away what earlier ones did after their checkpoint of R; that, and
the time from the last sign of life of one start to the process of the next, is lost to restarts.
So the parts add up to the time since the first start began.

A thread gives a sign of life every second, also during a compilation: the phase that a start was
killed in counts up to then. What is left until its death is down time. A start that ended before it
had its state back from a checkpoint has brought the run nowhere, so that all of it is repeated; one
that ended before the work directory was the run's has no row.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import threading
import time
from typing import Any

from moemoe_jax.errors import Stopped
from moemoe_jax.training.timing import Ledger
from moemoe_jax.workdir import write_atomically

_MARKS = 16  # checkpoints remembered of a start; a resume goes back a few at most
_EVERY = 1.0  # seconds between signs of life

Seconds = dict[str, float]


@dataclasses.dataclass
class Start:
    """One start of a run.

    Attributes:
      began: Unix time at which its process was made.
      last: Unix time of its last sign of life.
      from_step: the step that it went on from, 0 at first; None until it is known.
      step: steps done at its last sign of life.
      end: "done", "stopped", "failed: <exception>"; empty while it runs and when it was killed.
      seconds: by phase, up to `last`; they add up to the time since `began`.
      saved: the same as it was at each of its last checkpoints, by step.
    """

    began: float
    last: float
    from_step: int | None = None
    step: int = 0
    end: str = ""
    seconds: Seconds = dataclasses.field(default_factory=dict)
    saved: dict[int, Seconds] = dataclasses.field(default_factory=dict)


def account(starts: Sequence[Start]) -> Seconds:
    """The seconds by phase that brought the run to where it is, and those that were lost.

    Returns:
      seconds by phase; `repeated`, spent on what a later start did again; `down`, between starts.
    """
    kept: list[Seconds] = []
    total = {"repeated": 0.0, "down": 0.0}
    for number, start in enumerate(starts):
        for before in reversed(range(number if start.from_step is not None else 0)):
            began = starts[before].from_step
            whole = began is None or began >= start.from_step
            left = {} if whole else _at(starts[before], start.from_step)
            total["repeated"] += sum(kept[before].values()) - sum(left.values())
            kept[before] = left
            if began is not None and began <= start.from_step:
                break  # what came before that was settled when it started
        if number:
            total["down"] += max(0.0, start.began - starts[number - 1].last)
        kept.append(start.seconds)
    phases: Seconds = {}
    for seconds in kept:
        for name, value in seconds.items():
            phases[name] = phases.get(name, 0.0) + value
    return phases | total


def _at(start: Start, step: int) -> Seconds:
    """The seconds of a start at its checkpoint of `step`, or at the one before."""
    found = [saved for saved in start.saved if saved <= step]
    return start.saved[max(found)] if found else {}


class Goodput:
    """The book of one start; a context that keeps it up to date and notes how the start ends.

    Args:
      path: of goodput.json; one that cannot be read is put aside as goodput.json.damaged.
      ledger: of this start.
      began: Unix time at which its process was made.
      write: whether to write at all: one of several processes does.
      clock: Unix time.
    """

    def __init__(
        self,
        path: Path,
        ledger: Ledger,
        began: float,
        write: bool = True,
        clock: Callable[[], float] = time.time,
    ):
        self._path, self._ledger, self._write, self._clock = path, ledger, write, clock
        self._earlier = self._read()
        self._now = Start(began, began)
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._live, name="goodput", daemon=True)

    def _read(self) -> list[Start]:
        try:
            return read_starts(self._path)
        except (ValueError, KeyError, TypeError, AttributeError):
            if self._write:
                os.replace(self._path, self._path.with_name(self._path.name + ".damaged"))
            return []

    def goes_on_from(self, step: int) -> None:
        """Notes the step that this start goes on from."""
        self._now.from_step = step
        self.update(step)
        self._sign()

    def withdraw(self) -> None:
        """Takes this start out of the book: there was nothing left to do."""
        self._ended.set()
        with self._lock:
            if self._write:
                self._put_down(self._earlier)
            self._write = False

    def update(self, step: int) -> None:
        """Notes that so many steps are done, for the next sign of life: costs a step nothing."""
        self._now.step = step

    def saved(self, step: int) -> None:
        """Notes that there is a checkpoint of `step`: what was done so far can be gone on from."""
        with self._lock:
            marks = self._now.saved
            marks[step] = self._seconds()
            for old in sorted(marks)[:-_MARKS]:
                del marks[old]
        self.update(step)
        self._sign()

    def _sign(self) -> None:
        """Gives a sign of life: writes down where the time went up to now."""
        with self._lock:
            self._now.last, self._now.seconds = self._clock(), self._seconds()
            if self._write:
                self._put_down([*self._earlier, self._now])

    def _put_down(self, starts: Sequence[Start]) -> None:
        rows = [dataclasses.asdict(start) for start in starts]
        write_atomically(self._path, json.dumps({"starts": rows}, indent=1) + "\n")

    def _live(self) -> None:
        while not self._ended.wait(_EVERY):
            with contextlib.suppress(OSError):  # a full disk is told by whoever saves next
                self._sign()

    def _seconds(self) -> Seconds:
        totals = self._ledger.totals()
        elapsed = totals.pop("elapsed")
        totals["other"] = max(0.0, elapsed - sum(totals.values()))
        return {name: round(value, 3) for name, value in totals.items()}

    def lines(self) -> list[str]:
        """What is told at the end: the times of this start and, after a restart, of all."""
        self._sign()
        text = [_line("time of this start", self._now.seconds)]
        if self._earlier:
            starts = [*self._earlier, self._now]
            text.append(_line(f"time of all {len(starts)} starts", account(starts)))
        return text

    def __enter__(self) -> "Goodput":
        self._sign()
        if self._write:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        if kind is None:
            self._now.end = "done"
        else:
            self._now.end = "stopped" if issubclass(kind, Stopped) else f"failed: {kind.__name__}"
        # What ended the run is told, and not that the disk, which may be why, is full here too.
        with contextlib.nullcontext() if kind is None else contextlib.suppress(OSError):
            self._sign()


def _line(title: str, seconds: Seconds) -> str:
    whole = sum(seconds.values())
    lost = {name: seconds[name] for name in ("repeated", "down") if name in seconds}
    parts = [f"{name} {value:.0f} s" for name, value in seconds.items() if name not in lost]
    if lost:
        told = ", ".join(f"{name} {value:.0f} s" for name, value in lost.items())
        parts.append(f"lost to restarts {sum(lost.values()):.0f} s ({told})")
    share = seconds.get("step", 0.0) / whole if whole else 0.0
    return "  ".join([f"{title}: {whole:.0f} s", *parts, f"goodput {share:.0%}"])


def read_starts(path: str | os.PathLike) -> list[Start]:
    """The starts so far, none where there is no file.

    Raises:
      ValueError, KeyError, TypeError or AttributeError: the file is no such book.
    """
    path = Path(path)
    rows = json.loads(path.read_text())["starts"] if path.exists() else []
    return [
        Start(**row | {"saved": {int(step): seconds for step, seconds in row["saved"].items()}})
        for row in rows
    ]
