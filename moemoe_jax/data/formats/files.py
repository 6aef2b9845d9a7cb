"""Which files of a folder are data, and which split each belongs to by its name.

`train.jsonl`, `val-00001.parquet` and `test_02.jsonl` name their splits; `part-7.jsonl` does not.
"""

from collections.abc import Sequence
from pathlib import Path
import re

from moemoe_jax.errors import UserError

_SPLIT = re.compile(r"(train|training|val|valid|validation|dev|test)(?:[-_.].*)?", re.IGNORECASE)
_NAMES = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}
# What a job of ours could not use; it may lie beside data, and is none.
_REJECTS = re.compile(r"(.+\.)?rejects(\.\d+)?\.jsonl")


def split_name(name: str) -> str:
    """The house's name for a split: "validation", "valid" and "dev" are "val"."""
    return _NAMES.get(name.lower(), name.lower())


def is_rejects(name: str) -> bool:
    """Whether a file of that name is a job's list of rejects, such as `answers.jsonl`'s."""
    return _REJECTS.fullmatch(name) is not None


def find_files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The file itself, or the folder's own files with these suffixes, in order of name."""
    if path.is_file():
        return [path] if path.suffix.lower() in suffixes else []
    if not path.is_dir():
        return []
    return sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in suffixes
        and file.is_file()
        and not file.name.startswith(".")
        and not is_rejects(file.name)
    )


def split_files(path: Path, suffixes: Sequence[str]) -> dict[str | None, list[Path]]:
    """Split -> files; the one key None where the names tell no splits, or a single file is named.

    Raises:
      UserError: some files of the folder name a split and others do not, or the file is of another
        kind.
    """
    files = find_files(path, suffixes)
    if path.is_file():
        if not files:
            raise UserError(
                f"{path} does not end in {' or '.join(suffixes)}; if it is such a file, rename it"
            )
        return {None: files}
    found: dict[str | None, list[Path]] = {}
    for file in files:
        match = _SPLIT.fullmatch(file.stem)
        found.setdefault(split_name(match[1]) if match else None, []).append(file)
    if None in found and len(found) > 1:
        raise UserError(
            f"{path} holds files of a named split and {found[None][0].name}, which names none; "
            "rename it, move it away, or name one file instead of the folder"
        )
    return found


def split_names(path: Path, suffixes: Sequence[str]) -> tuple[str, ...]:
    """The splits that the file names tell; () for none."""
    return tuple(name for name in split_files(path, suffixes) if name is not None)


def files_of(path: Path, suffixes: Sequence[str], split: str | None) -> list[Path]:
    """The files of one split, or all for None."""
    found = split_files(path, suffixes)
    return [file for name, files in found.items() if split in (None, name) for file in files]
