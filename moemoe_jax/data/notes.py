"""What happened to the data on their way, counted: truncations, questions left out, and so on.

A reject is a record or an image that could not be used; a note is something used, but not whole.
"""

from collections import Counter
import threading


class Notes:
    """A thread-safe counter of events.

    `once` counts an event of a given record or text a single time, however often epochs and full
    caches bring it back. The first example of an event is kept, so that it can be looked at.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._records: dict[str, bytearray] = {}
        self._texts: dict[str, set[str]] = {}

    def add(self, event: str, count: int = 1, example: str = "") -> None:
        """Counts `event`, `count` times; `example` says what it happened to."""
        if count:
            with self._lock:
                self._counts[event] += count
                self._examples.setdefault(event, example)

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
                self._counts[event] += 1
                self._examples.setdefault(event, example)

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
