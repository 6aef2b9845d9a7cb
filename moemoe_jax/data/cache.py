"""A cache that fills up and then stays as it is.

Training draws every record once an epoch in a new order. Evicting the oldest entry would then throw
away what comes next; keeping the first that fit saves exactly the share that fits.
"""

from collections.abc import Hashable
import threading
from typing import Any


class BoundedCache:
    """Values by key, up to `mib` mebibytes; safe to share among threads."""

    # What a key and a dictionary slot take, and an array's or a text's header.
    _OVERHEAD = 256

    def __init__(self, mib: int):
        self._limit = mib * 2**20
        self._used = 0
        self._entries: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """Returns the value kept under `key`, which must not be written to, or None."""
        return self._entries.get(key)

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keeps `value`, of `size` bytes, if there is room left."""
        size += self._OVERHEAD
        with self._lock:
            if self._used + size <= self._limit and key not in self._entries:
                self._entries[key] = value
                self._used += size

    def __len__(self) -> int:
        return len(self._entries)
