"""JSON Lines of records: one file, or a folder of them, split where their names say so."""

from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
from typing import Any

from moemoe_jax.data.formats import files
from moemoe_jax.data.formats.lines import LineSource
from moemoe_jax.data.records import Record, RecordError, identity, parse_record
from moemoe_jax.data.rejects import Rejects

SUFFIXES = (".jsonl", ".ndjson")
_ATTEMPTS = 10  # lines in which an object is looked for


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose last word must not win where a key says two things."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise RecordError(f"key twice in one object: {twice!r}; keep one of them")
    return found


# Kept, as making one takes half as long as reading a line.
_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def decode(text: str) -> Any:
    """One JSON value.

    Raises:
      RecordError: an object has a key twice.
      ValueError: not JSON.
    """
    return _DECODER.decode(text)


def load_json(line: str) -> dict[str, Any]:
    """One line as an object.

    Raises:
      RecordError: not JSON, not an object, or one with a key twice.
    """
    try:
        # Without its end: an error behind that would be told as one in column 1 of a next line.
        value = decode(line.rstrip("\r\n"))
    except RecordError:
        raise
    except json.JSONDecodeError as error:
        what = f"{error.msg.removesuffix(' at')} at column {error.pos + 1}"
        raise RecordError(f"not JSON: {what}{_cut(line.strip())}") from error
    except (RecursionError, ValueError) as error:  # nesting and numbers beyond all reason
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RecordError(f"not an object: a {type(value).__name__} where a record should be")
    return value


def _cut(line: str) -> str:
    """What a line that is no JSON may be a part of."""
    if line in ("{", "["):
        return "; a record must stand in one line"
    return "; the line seems cut short" if line[:1] == "{" and line[-1] != "}" else ""


def first_keys(path: Path) -> set[str]:
    """The keys of the first line of a file or folder that is an object; empty if none is near."""
    for file in files.find_files(path, SUFFIXES)[:1]:
        with file.open("rb") as lines:
            for _, line in zip(range(_ATTEMPTS), lines, strict=False):
                try:
                    return set(load_json(line.decode("utf-8").removeprefix("\ufeff")))
                except (RecordError, UnicodeDecodeError):
                    continue
    return set()


def read_ids(path: Path, split: str) -> Iterator[str]:
    """The ids of a split, from the lines that hold one; those without cannot be used anyway."""
    for file in files.files_of(path, SUFFIXES, split):
        with contextlib.suppress(OSError), file.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(RecordError, UnicodeDecodeError):
                    yield identity(load_json(line.decode("utf-8").removeprefix("\ufeff")))


def parse_line(line: str, file: Path) -> Record:
    """A record from its line; image paths are relative to the file's folder."""
    return parse_record(load_json(line), file.parent)


def detect(path: Path) -> bool:
    """A `.jsonl` file, or a folder with some, unless WDC-PAVE's."""
    return bool(files.find_files(path, SUFFIXES)) and "target_scores" not in first_keys(path)


def splits(path: Path) -> tuple[str, ...]:
    """The splits that the file names tell."""
    return files.split_names(path, SUFFIXES)


def open_records(path: Path, split: str | None, rejects: Rejects) -> LineSource:
    """Opens a file, or the folder's files of one split."""
    return LineSource(str(path), files.files_of(path, SUFFIXES, split), parse_line, rejects)
