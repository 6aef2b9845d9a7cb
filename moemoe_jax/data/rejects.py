"""What could not be used: counted, written down with file, line and reason, and limited.

A bad line never stops a job and never vanishes; too many of them do stop it.
"""

from collections import Counter
from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
import threading

from moemoe_jax.errors import UserError

_Key = tuple[str, int, str, str | None]  # file, line, reason, id


class Rejects:
    """The list of rejects of one job; safe to use from several threads.

    Each reject is one line of `rejects.jsonl`: `{"file", "line", "reason", "id"?}`; `line` counts
    from 1 (for Parquet and TFDS: the row) and is 0 where the whole file is meant. The same file,
    line, reason and id count and are written once, also when a job is resumed with the same file.

    Of several processes each has a list of its own. What all of them find (see `found_by_all`), the
    first writes down; what another finds alone goes to `rejects.<process>.jsonl`.
    """

    def __init__(
        self,
        path: Path | str | None = None,
        max_fraction: float = 0.01,
        process: int = 0,
        anew: bool = False,
    ):
        """Makes an empty list.

        Args:
          path: where to append; None keeps only the counts.
          max_fraction: the share of rejects, in 0..1, above which `check` raises.
          process: which of the job's processes this is.
          anew: whether what an earlier job left in the file is removed.
        """
        if not 0.0 <= max_fraction <= 1.0:
            raise UserError(
                f"max_reject_fraction is {max_fraction}; it is a share, give a number from 0 to 1"
            )
        self.path = Path(path) if path is not None else None
        if process and self.path is not None:
            self.path = self.path.with_name(f"{self.path.stem}.{process}{self.path.suffix}")
        self._process = process
        self.max_fraction = max_fraction
        self.reasons: Counter[str] = Counter()  # by kind: the reason up to its first colon
        self._keys: set[_Key] = set()
        self._seen: dict[str, int] = {}
        self._lock, self._thread = threading.Lock(), threading.local()
        if anew and self.path is not None:
            self.path.unlink(missing_ok=True)
        self._written = _read_keys(self.path)

    def __getstate__(self):
        """A copy for a worker process: all but the lock."""
        state = dict(self.__dict__)
        del state["_lock"], state["_thread"]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock(), _thread=threading.local())

    @property
    def total(self) -> int:
        """How many different rejects there are."""
        return len(self._keys)

    @property
    def seen(self) -> int:
        """How many records were looked at, good and bad, as told by `saw`."""
        return sum(self._seen.values())

    @contextlib.contextmanager
    def found_by_all(self) -> Iterator[None]:
        """What this thread adds inside the block, the other processes find as well."""
        self._thread.shared = True
        try:
            yield
        finally:
            self._thread.shared = False

    def saw(self, file: Path | str, count: int) -> None:
        """Tells how many records `file` holds; telling it again does not count twice."""
        with self._lock:
            self._seen[str(file)] = count

    def add(self, file: Path | str, line: int, reason: str, id: str | None = None) -> None:
        """Counts and writes down one reject.

        Args:
          file: the file that it is in.
          line: the line or row, from 1.
          reason: one line; its text up to the first colon is the kind it is counted under.
          id: the record's id where it is known.
        """
        key = (str(file), int(line), reason, id)
        with self._lock:
            if key in self._keys:
                return
            self._keys.add(key)
            self.reasons[reason.split(":", 1)[0]] += 1
            theirs = self._process > 0 and getattr(self._thread, "shared", False)
            if self.path is None or theirs or key in self._written:
                return
            self._written.add(key)
            entry = {"file": key[0], "line": key[1], "reason": reason}
            if id is not None:
                entry["id"] = id
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def check(self, seen: int | None = None) -> None:
        """Stops the job where the share of rejects is above the limit.

        Args:
          seen: how many records were looked at, good and bad; None takes what `saw` was told.

        Raises:
          UserError: names the share, the limit, the file and the most common reason.
        """
        total, seen = self.total, max(self.seen if seen is None else seen, 1)
        share = min(total / seen, 1.0)
        if share <= self.max_fraction:
            return
        kind, count = self.reasons.most_common(1)[0]
        file, line, reason = min(key[:3] for key in self._keys if key[2].split(":", 1)[0] == kind)
        place = f"{file} line {line}" if line else file
        more = f" ({detail.strip()})" if (detail := reason.partition(":")[2]) else ""
        listed = f"all are listed in {self.path}; " if self.path is not None else ""
        raise UserError(
            f"at least {total} of {seen} records were rejected ({share:.1%}), more than the "
            f"{self.max_fraction:.1%} of data.max_reject_fraction; most often ({count} of them): "
            f"{kind}, first in {place}{more}; {listed}mend the data or raise "
            "--config.data.max_reject_fraction (outside of training: --max_reject_fraction)"
        )


def _read_keys(path: Path | None) -> set[_Key]:
    """The rejects that an earlier run of the job wrote; a line cut short by a kill is closed."""
    if path is None or not path.exists():
        return set()
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("ab") as out:
            out.write(b"\n")
    keys = set()
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            entry = json.loads(line)
            keys.add((entry["file"], entry["line"], entry["reason"], entry.get("id")))
        except (ValueError, KeyError, TypeError):
            continue  # the cut-short line itself
    return keys
