"""What happened to the data on their way, counted: truncations, questions left out, and so on.

A reject is a record or an image that could not be used; a note is something used, but not whole.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
import contextlib
import threading
from typing import Any


class Notes:
    """A thread-safe counter of events.

    `once` counts an event of a given record or text a single time, however often epochs and full
    caches bring it back. The first example of an event is kept, so that it can be looked at.

    A job in parts, some of which another process or an earlier start of it does, names the part
    with `within`, keeps what `take` tells of each with its results, and has all of it together by
    `put`.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._records: dict[str, bytearray] = {}
        self._texts: dict[str, set[str]] = {}
        self._parts: dict[int, dict[str, dict[str, Any]]] = {}

    def add(self, event: str, count: int = 1, example: str = "") -> None:
        """Counts `event`, `count` times; `example` says what it happened to."""
        if count:
            with self._lock:
                self._count(event, count, example)

    def once(self, event: str, key: int | str, example: str = "") -> None:
        """Counts `event` unless it was counted for this record number or text before."""
        with self._lock:
            if isinstance(key, str):
                seen = self._texts.setdefault(event, set())
                fresh = key not in seen
                seen.add(key)
            else:
                # One byte a record: ten million truncated contexts take ten megabytes.
                flags = self._records.setdefault(event, bytearray())
                if key >= len(flags):
                    flags.extend(bytes(key + 1 - len(flags)))
                fresh = not flags[key]
                flags[key] = 1
            if fresh:
                self._count(event, 1, example, key)

    def _count(self, event: str, count: int, example: str, key: int | str | None = None) -> None:
        self._counts[event] += count
        self._examples.setdefault(event, example)
        part = getattr(self._thread, "part", None)
        if part is not None:
            new = {"count": 0, "example": example, "texts": []}
            kept = self._parts.setdefault(part, {}).setdefault(event, new)
            if isinstance(key, str):
                kept["texts"].append(key)  # which other parts may have as well
            else:
                kept["count"] += count

    @contextlib.contextmanager
    def within(self, part: int) -> Iterator[None]:
        """What this thread notes inside the block is of that part of the job."""
        self._thread.part = part
        try:
            yield
        finally:
            self._thread.part = None

    def take(self, part: int) -> dict[str, dict[str, Any]]:
        """What was noted of a part since it was last taken, as JSON types; `put` reads it."""
        with self._lock:
            return self._parts.pop(part, {})

    def put(self, taken: Mapping[str, Mapping[str, Any]]) -> None:
        """Counts what `take` told of a part, here or elsewhere."""
        for event, kept in taken.items():
            self.add(event, kept["count"], kept["example"])
            for text in kept["texts"]:
                self.once(event, text, kept["example"])

    def counts(self) -> dict[str, int]:
        """Returns every event seen so far with its count, by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def lines(self) -> list[str]:
        """What is told of every event: its count and its first example."""
        counts = self.counts()
        with self._lock:
            shown = {event: self._examples.get(event) for event in counts}
        return [
            f"note: {event}: {count}" + (f", such as {shown[event]}" if shown[event] else "")
            for event, count in counts.items()
        ]
