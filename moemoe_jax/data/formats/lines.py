"""Records that are lines of text files, read at random.

Opening reads every line once: bad ones are rejected, and of the good ones only the place is kept
(24 bytes a record). A record is parsed again each time it is asked for.

Shapes: N records.
"""

from array import array
from collections.abc import Callable, Sequence
import itertools
from pathlib import Path

import numpy as np

from moemoe_jax.data.file_stats import FileStats
from moemoe_jax.data.records import Record, RecordError
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.splits import id_hash
from moemoe_jax.errors import UserError

Parse = Callable[[str, Path], Record]  # a line and its file -> the record; may raise RecordError
Remark = Callable[[Record, Path], str | None]  # what is wrong with a record that is usable still


class LineSource:
    """A RecordSource over text files; reads are lazy and safe from several threads.

    Attributes:
      files_digest: of the image files that the records name (`data.file_stats`).
    """

    splits: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        parse: Parse,
        rejects: Rejects,
        *,
        header_lines: int = 0,
        remark: Remark | None = None,
    ):
        """Indexes the files; what cannot be used goes to `rejects`.

        Args:
          name: how messages call the source.
          files: read in this order.
          parse: turns a line into a record; picklable, if the source is to be.
          rejects: where bad lines and duplicate ids go.
          header_lines: lines at the head of each file that are no records.
          remark: asked for each good record; what it returns is added to the rejects, and the
            record is kept.
        """
        self.name = name
        self._files = list(files)
        self._parse = parse
        starts, lengths, hashes, lines = array("q"), array("q"), array("Q"), array("q")
        ends, images = [], FileStats()
        for file in self._files:
            seen = 0
            for number, start, raw in _lines(file, header_lines):
                seen += 1
                try:
                    record = self._parse(_decode(raw), file)
                except RecordError as error:
                    rejects.add(file, number, str(error))
                    continue
                if remark is not None and (reason := remark(record, file)):
                    rejects.add(file, number, reason, record.id)
                images.add_images(record)
                starts.append(start)
                lengths.append(len(raw))
                hashes.append(id_hash(record.id))
                lines.append(number)
            rejects.saw(file, seen)
            ends.append(len(starts))
        self._starts, self._lengths, self._hashes = (
            np.array(column) for column in (starts, lengths, hashes)
        )
        self._ends = np.array(ends)
        self.files_digest = images.digest()
        self._drop_duplicates(lines, rejects)

    def _drop_duplicates(self, lines: array, rejects: Rejects) -> None:
        """Keeps the first record of each id. Equal hashes are looked up, never taken for equal."""
        order = np.argsort(self._hashes, kind="stable")
        ranked = self._hashes[order]
        firsts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]][: len(order)])
        keep = np.ones(len(order), bool)
        for begin, end in itertools.pairwise((*firsts, len(order))):
            if end - begin == 1:
                continue
            ids: set[str] = set()
            for i in order[begin:end]:
                record_id = self[i].id
                if record_id in ids:
                    keep[i] = False
                    rejects.add(self._file(i), lines[i], "duplicate id", record_id)
                ids.add(record_id)
        if not keep.all():
            self._ends = np.r_[0, np.cumsum(keep)][self._ends]
            self._starts, self._lengths, self._hashes = (
                column[keep] for column in (self._starts, self._lengths, self._hashes)
            )

    def _file(self, index: int) -> Path:
        return self._files[int(np.searchsorted(self._ends, index, side="right"))]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.name}")
        index = int(index) % len(self)
        file = self._file(index)
        try:
            with file.open("rb", buffering=0) as lines:
                lines.seek(int(self._starts[index]))
                return self._parse(_decode(lines.read(int(self._lengths[index]))), file)
        except (RecordError, OSError) as error:
            raise UserError(
                f"{file} changed while it was in use ({error}); start the job again"
            ) from error

    def __repr__(self) -> str:
        return f"LineSource({self.name}, {len(self)} records)"

    def id_hashes(self) -> np.ndarray:
        """uint64 [N]: the hash of each id."""
        return self._hashes


def _lines(file: Path, header_lines: int):
    """Yields (line number from 1, byte offset, bytes) of the lines that are not blank."""
    try:
        lines = file.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; mend its permissions") from error
    with lines:
        start = 0
        for number, raw in enumerate(lines, 1):
            if number > header_lines and raw.strip():
                yield number, start, raw
            start += len(raw)


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")  # the mark that Excel puts in front
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8: byte {error.start + 1} of the line") from error
