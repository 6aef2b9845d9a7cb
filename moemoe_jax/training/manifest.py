"""The manifest of a checkpoint: what it holds, so that nothing of it can change unnoticed.

`manifest.json` lies in the checkpoint's folder and is written last, before the folder takes its
name. It has the shape, dtype and checksum of each leaf, the size and SHA-256 of each file, the
step, the hash of the settings, the meta (state of the data, metrics) and the versions that wrote
it, and its own SHA-256. A folder without one is no checkpoint.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import hashlib
from importlib import metadata
import json
import platform
from typing import Any

from etils import epath
import jax
import numpy as np

import moemoe_jax
from moemoe_jax.training.checksums import THREADS

NAME = "manifest.json"
SHOWN = 3  # things that are wrong that an error spells out
_MARKER = "commit_success.txt"  # what Orbax adds last of all to a folder in a bucket
_PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "tensorstore", "numpy")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a checkpoint."""

    shape: tuple[int, ...]
    dtype: str
    checksum: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
      step: number of updates done.
      config: the hash of the run's settings, or None.
      meta: JSON values that belong to the state.
      leaves: by name.
      files: by path in the checkpoint's folder, the size in bytes and the SHA-256.
      versions: by package.
    """

    step: int
    config: str | None
    meta: dict[str, Any]
    leaves: dict[str, Leaf]
    files: dict[str, tuple[int, str]]
    versions: dict[str, str]

    @classmethod
    def of(
        cls, step: int, config: str | None, meta: Mapping[str, Any], leaves: dict[str, Leaf]
    ) -> "Manifest":
        """The manifest of a checkpoint that has no files yet."""
        versions = {"python": platform.python_version(), "moemoe_jax": moemoe_jax.__version__}
        versions |= {name: metadata.version(name) for name in _PACKAGES}
        return cls(step, config, dict(meta), leaves, {}, versions)

    def to_json(self) -> bytes:
        """The text of the file: its last entry is the SHA-256 of all that is before it."""
        content = dataclasses.asdict(self)
        digest = hashlib.sha256(_text(content)).hexdigest()
        return _text(content | {"sha256": digest})

    @classmethod
    def from_json(cls, text: bytes) -> "Manifest":
        """Reads what `to_json` wrote.

        Raises:
          ValueError: when a bit of it is different.
        """
        try:
            content = json.loads(text)
            content.pop("sha256")
            content["leaves"] = {
                name: Leaf(tuple(leaf["shape"]), leaf["dtype"], leaf["checksum"])
                for name, leaf in content["leaves"].items()
            }
            content["files"] = {name: tuple(file) for name, file in content["files"].items()}
            manifest = cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{NAME} cannot be read: {error}") from None
        if manifest.to_json() != text:
            raise ValueError(f"{NAME} is not what was saved")
        return manifest


def _text(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"


def describe(named: Mapping[str, Any], checksums: Mapping[str, str]) -> dict[str, Leaf]:
    """The entries of the leaves `name -> array`, whose checksums are `name -> text`."""
    return {
        name: Leaf(tuple(leaf.shape), str(np.dtype(leaf.dtype)), checksums[name])
        for name, leaf in named.items()
    }


def seal(folder: epath.Path, manifest: Manifest) -> None:
    """Writes the manifest of a folder whose other files are complete."""
    files = dict(_map(_measure, _files(folder).items()))
    sealed = dataclasses.replace(manifest, files=files)
    (folder / NAME).write_bytes(sealed.to_json())


def replace(folder: epath.Path, manifest: Manifest) -> None:
    """Puts another manifest in the place of a folder's own; a reader sees the one or the other."""
    # Beside the folder, in which nothing unexpected may lie, however this ends.
    part = folder.parent / f"{folder.name}.{NAME}"
    part.write_bytes(manifest.to_json())
    part.replace(folder / NAME)


def read(folder: epath.Path, step: int) -> Manifest:
    """Reads the manifest of the checkpoint of a step.

    Raises:
      ValueError: when it is missing, was changed, or belongs to another step.
      OSError: when it cannot be read.
    """
    if not (folder / NAME).exists():
        raise ValueError(f"it is incomplete: {NAME} is missing")
    manifest = Manifest.from_json((folder / NAME).read_bytes())
    if manifest.step != step:
        raise ValueError(f"{NAME} is that of step {manifest.step}")
    return manifest


def find_damage(folder: epath.Path, manifest: Manifest) -> str:
    """Compares a folder's files with its manifest.

    With several processes each reads its share of the contents: all must be asked.

    Returns:
      What is wrong, in one line; empty when nothing is.

    Raises:
      OSError: when a file cannot be read.
    """
    present = _files(folder)
    present.pop(NAME, None)
    wrong = [f"{name} is missing" for name in manifest.files if name not in present]
    wrong += [f"{name} is unexpected" for name in present if name not in manifest.files]
    for name, path in present.items():
        size, wanted = path.stat().length, manifest.files.get(name, (None,))[0]
        if wanted not in (None, size):
            wrong.append(f"{name} has {size} bytes, not {wanted}")
    if not wrong:
        largest_first = sorted(present.items(), key=lambda item: -manifest.files[item[0]][0])
        share = largest_first[jax.process_index() :: jax.process_count()]
        wrong = [
            f"{name} is not what was saved"
            for name, found in _map(_measure, share)
            if found != manifest.files[name]
        ]
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return "; ".join(sorted(wrong)[:SHOWN]) + more


def _files(folder: epath.Path) -> dict[str, epath.Path]:
    """Every file below a folder, by its path from there."""
    ignored = {folder / _MARKER} if "://" in str(folder) else set()
    return {str(p.relative_to(folder)): p for p in _walk(folder) if p not in ignored}


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _measure(named: tuple[str, epath.Path]) -> tuple[str, tuple[int, str]]:
    name, path = named
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return name, (file.tell(), digest)


def _map(function: Callable[[Any], Any], items: Any) -> list[Any]:
    """Applies a function that waits for files to each of the items."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))
