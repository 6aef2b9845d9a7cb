"""What may be read of a folder that came from elsewhere, and how a folder is written.

A downloaded folder is not trusted: its links must not make a command read other files of the
machine, a named pipe must not make it wait for ever, and its JSON is read strictly.
"""

from collections.abc import Iterator
import contextlib
import json
import math
import os
from pathlib import Path
import re
import reprlib
import secrets
import shutil
import stat
import time
from typing import Any, BinaryIO

from moemoe_jax.errors import UserError

MAX_JSON_BYTES = 64 * 2**20  # the largest in use, a tokenizer.json of 250,000 pieces, has 17 MB
_NAME = re.compile(r"[^/\\]{1,255}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def shown(value: Any) -> str:
    """What a file holds, as it may stand in a one-line message: escaped and cut."""
    return _short.repr(value)


def find_file(folder: str | os.PathLike, name: str) -> Path | None:
    """The regular file `name` of `folder`, links followed; None where there is nothing.

    A link may lead to the folder's own files or, in a cache of the Hugging Face hub, to that
    cache's blobs.

    Raises:
      UserError: the name is a path, a link leads elsewhere or nowhere, or it is no regular file.
    """
    path = Path(folder) / name
    if not _NAME.fullmatch(name) or not name.isprintable() or name in (".", ".."):
        raise UserError(
            f"{Path(folder)} is to hold a file {shown(name)}, which is no plain file name: only "
            "files of the folder itself are read"
        )
    if not os.path.lexists(path):
        return None
    root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if root not in real.parents and not _is_hub_blob(root, real):
        raise UserError(
            f"{path} is a link that leads out of its folder, to {shown(str(real))}: put the file "
            "itself there"
        )
    try:
        mode = real.stat().st_mode
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; download it again") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is not a regular file: put the file itself there")
    return real


def _is_hub_blob(root: Path, real: Path) -> bool:
    """Whether `root` is a snapshot in a hub cache and `real` a blob of the same cache.

    CACHE/models--X/snapshots/REVISION/FILE leads to CACHE/models--X/blobs/HASH or, where the
    cache shares files among models, on to CACHE/blobs/first two digits/HASH.
    """
    if root.parent.name != "snapshots" or not _HASH.fullmatch(real.name):
        return False
    model = root.parent.parent
    shared = model.parent / "blobs" / real.name[:2]
    return model.name.startswith("models--") and real.parent in (model / "blobs", shared)


def open_file(path: Path) -> BinaryIO:
    """Opens what `find_file` found, unbuffered; a pipe or link put there since is refused.

    Raises:
      UserError: it cannot be opened or is not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    file = os.fdopen(descriptor, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise UserError(f"{path} is not a regular file: put the file itself there")
    return file


def parse_json(text: bytes) -> dict[str, Any]:
    """Reads JSON as the standard has it: UTF-8, no NaN or Infinity, no key twice; an object.

    Raises:
      ValueError: it is not; says what is wrong.
    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"not an object but {shown(value)}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"{shown(twice)} stands there twice")
    return result


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{shown(text)} is too large a number")
    return value


def read_json(folder: str | os.PathLike, name: str) -> dict[str, Any]:
    """Reads a JSON file of a folder: a config.json, of a model or of a run, an index of shards.

    `find_file` says whether an optional one is there.

    Raises:
      UserError: it is missing, too large, not strict JSON or not an object.
    """
    path, real = Path(folder) / name, find_file(folder, name)
    if real is None:
        raise UserError(f"{path} is missing: download or save the folder again")
    with open_file(real) as file:
        content = read_at_most(file, MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise UserError(f"{path} has more than {MAX_JSON_BYTES} bytes: is it the right file?")
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}; download or save it again, or restore it from a copy"
        ) from None


def read_at_most(file: BinaryIO, size: int) -> bytes:
    """Reads up to `size` bytes, fewer only at the end of the file."""
    parts, left = [], size
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yields a folder beside `folder` to write into, which takes its name at the end.

    Where the block raises, nothing of the folder is left.

    Raises:
      UserError: there is a file, or a folder with something in it, at `folder`; or it cannot be
        written (a full disk).
    """
    target = Path(os.path.abspath(folder))
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists already: choose another place, or remove it")
    part = target.with_name(f".{target.name}.part-{secrets.token_hex(4)}")
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(target)
    except OSError as error:
        _clear(part)
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Removes a folder where threads may still write, and make folders, after one has failed."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)
        if not os.path.lexists(folder):
            return
