"""Rows of arrays, kept by name: in memory, or in memory-mapped files that the next start reads.

Like `data.cache`, it fills up and then stays as it is. On disk, the arrays lie in one file each, in
the order in which the rows came, and a list names the rows that are whole. The list is replaced at
once, after the rows that it names were written, so a process may die at any time: rows that the
list does not name are not there. The room is taken up first: a disk that is full says so then.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
import contextlib
import json
import os
from pathlib import Path
import shutil

import numpy as np

from moemoe_jax.errors import UserError
from moemoe_jax.workdir import write_atomically

Shapes = Sequence[tuple[tuple[int, ...], np.dtype]]

_MANIFEST, _LIST = "manifest.json", "rows.npy"
_ENTRY = np.dtype([("number", "<i8"), ("digest", "<u8")])


def bytes_of(shapes: Shapes) -> int:
    """Bytes of one row."""
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes)


class KeptRows:
    """Up to `capacity` rows, each one array of each of the `shapes`.

    Args:
      shapes: (shape, dtype) of the arrays of a row.
      capacity: the most rows, at least one.
    """

    def __init__(self, shapes: Shapes, capacity: int):
        self.capacity = capacity
        self._shapes = [(tuple(shape), np.dtype(dtype)) for shape, dtype in shapes]
        self._places: dict[Hashable, int] = {}
        self._arrays = [self._array(i) for i in range(len(self._shapes))]

    def _array(self, index: int) -> np.ndarray:
        shape, dtype = self._shapes[index]
        return np.empty((self.capacity, *shape), dtype)  # memory is taken up when it is written to

    def __contains__(self, name: Hashable) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def names(self) -> list[Hashable]:
        """The rows that are kept, in the order in which they came."""
        return list(self._places)

    def put(self, name: Hashable, row: Sequence[np.ndarray], digest: int = 0) -> None:
        """Keeps a row if it is not there yet and there is room left.

        Args:
          name: which; on a disk, a number.
          row: its arrays.
          digest: of what it was made of, for the next start; memory does not ask.
        """
        place = len(self._places)
        if name in self._places or place == self.capacity:
            return
        for array, value in zip(self._arrays, row, strict=True):
            array[place] = value
        self._note(place, name, digest)
        self._places[name] = place

    def _note(self, place: int, name: Hashable, digest: int) -> None:
        """Remembers what else is known of a row."""

    def take(
        self, names: Sequence[Hashable], others: Mapping[Hashable, Sequence[np.ndarray]]
    ) -> list[np.ndarray]:
        """The arrays of several rows, stacked.

        Args:
          names: which rows, and how often.
          others: the rows of these that are not kept.
        """
        places = [self._places.get(name) for name in names]
        missing = [i for i, place in enumerate(places) if place is None]
        found = []
        for index, array in enumerate(self._arrays):
            rows = np.asarray(array[[place or 0 for place in places]])
            for i in missing:
                rows[i] = others[names[i]][index]
            found.append(rows)
        return found

    def row(self, name: Hashable) -> list[np.ndarray]:
        """The arrays of a row that is kept."""
        return [array[self._places[name]] for array in self._arrays]

    def flush(self) -> None:
        """Makes what was put so far safe for the next start; memory has none."""


class RowsOnDisk(KeptRows):
    """The same in a folder.

    Args:
      shapes: as above.
      capacity: as above.
      folder: of this process alone. What another fingerprint left there is removed.
      fingerprint: what all rows depend on, by topic.
      say: prints a line.

    Attributes:
      folder: as above.
      earlier: the rows that an earlier start has left, each with its digest.

    Raises:
      UserError: the folder cannot be written, or has no room; so do `put` and `flush`.
    """

    def __init__(
        self,
        shapes: Shapes,
        capacity: int,
        folder: Path,
        fingerprint: Mapping[str, str],
        say: Callable[[str], None],
    ):
        self.folder = folder
        row = " ".join(f"{np.dtype(dtype).name}{list(shape)}" for shape, dtype in shapes)
        self._manifest = {**fingerprint, "the shape of a row": row, "room": f"{capacity} rows"}
        with _told(folder):
            why = self._unfit(bytes_of(shapes) * capacity)
            if why is not None:
                if why:
                    say(f"encodings: what {folder} holds is of no use ({why}); it is made anew")
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                write_atomically(folder / _MANIFEST, json.dumps(self._manifest, indent=1) + "\n")
            super().__init__(shapes, capacity)
            self._entries = np.zeros(capacity, _ENTRY)
            left = np.load(folder / _LIST) if why is None else self._entries[:0]
        self._entries[: len(left)] = left
        self._places = {int(entry["number"]): place for place, entry in enumerate(left)}
        self._flushed = len(left)
        self.earlier = {int(entry["number"]): int(entry["digest"]) for entry in left}

    def _unfit(self, size: int) -> str | None:
        """Why the folder does not fit; empty where there is nothing, None where it does."""
        if not (self.folder / _LIST).exists():
            return ""
        try:
            kept = json.loads((self.folder / _MANIFEST).read_text())
            changed = [name for name, value in self._manifest.items() if kept.get(name) != value]
            if changed:
                return f"{', '.join(changed)} changed"
            entries = np.load(self.folder / _LIST)
            stored = sum(file.stat().st_size for file in self.folder.glob("array-*"))
            whole = entries.dtype == _ENTRY and entries.ndim == 1 and stored == size
        except (OSError, ValueError, AttributeError, EOFError) as error:
            return f"{type(error).__name__}: {error}"
        return None if whole else "a file is damaged"

    def _array(self, index: int) -> np.ndarray:
        shape, dtype = self._shapes[index]
        path, size = self.folder / f"array-{index}", self.capacity * bytes_of([(shape, dtype)])
        with path.open("ab") as file:
            if file.tell() < size:
                _reserve(file.fileno(), size)
        return np.memmap(path, dtype, "r+", shape=(self.capacity, *shape))

    def _note(self, place: int, name: Hashable, digest: int) -> None:
        self._entries[place] = name, digest

    def flush(self) -> None:
        """Makes what was put so far safe for the next start."""
        count = len(self)
        if count == self._flushed:
            return
        with _told(self.folder):
            for array in self._arrays:
                array.flush()
            part = self.folder / f"{_LIST}.part.npy"
            np.save(part, self._entries[:count])
            os.replace(part, self.folder / _LIST)
        self._flushed = count

    def discard(self) -> None:
        """Has the next start begin anew."""
        (self.folder / _LIST).unlink(missing_ok=True)


def _reserve(file: int, size: int) -> None:
    """Takes up the room: writing to a mapped file on a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}; make room there, lower "
            "train.cache_encodings_mib, or set train.cache_encodings=memory"
        ) from error
