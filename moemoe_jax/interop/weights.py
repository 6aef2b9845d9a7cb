"""A folder of Hugging Face weights: checked whole when it is opened, read one tensor at a time.

A folder is what `save_pretrained` or a download from the hub leaves: config.json and either
model.safetensors or model.safetensors.index.json with its shards. Nothing else holds weights that
are read; above all nothing is ever unpickled.
"""

from collections.abc import Mapping
import dataclasses
import difflib
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moemoe_jax.errors import UserError
from moemoe_jax.files import find_file, new_folder, open_file, read_json, shown
from moemoe_jax.interop.refusals import no_folder, no_weights
from moemoe_jax.interop.safetensors_header import FLOATS, Entry, read_header
from moemoe_jax.interop.writer import INDEX, SINGLE, write_weights

__all__ = [
    "Weights",
    "find_file",
    "new_folder",
    "open_weights",
    "read_json",
    "write_weights",
]

MAX_BYTES = 2**40  # of all shards together: more than any model of these architectures has


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file whose header was checked, and what tells whether it is still the same file."""

    path: Path
    real: Path
    identity: tuple[int, ...]
    entries: Mapping[str, Entry]


def _identity(file: BinaryIO) -> tuple[int, ...]:
    state = os.fstat(file.fileno())
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


class Weights:
    """The tensors of a folder by name; made by `open_weights`. Holds no tensor and no open file."""

    def __init__(self, folder: Path, config: dict[str, Any], shards: list[_Shard]):
        self.folder = folder
        self.config = config
        self._place = {name: shard for shard in shards for name in shard.entries}

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._place))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype:
        """The dtype of a tensor, without reading it; bfloat16 is that of ml_dtypes."""
        return self._entry(name).dtype

    def file(self, name: str) -> Path:
        """The file that holds a tensor, for messages."""
        self._entry(name)
        return self._place[name].path

    def read(self, name: str, *, any_dtype: bool = False) -> np.ndarray:
        """Reads one tensor, and nothing more, into memory.

        Args:
          name: one of `names()`.
          any_dtype: whether a tensor of integers or truth values is wanted, too.

        Raises:
          UserError: there is no such tensor, it holds no floating-point numbers, or the file
            cannot be read or changed since it was opened.
        """
        return self.read_slice(name, (), any_dtype=any_dtype)

    def read_slice(
        self, name: str, index: tuple[slice, ...], *, any_dtype: bool = False
    ) -> np.ndarray:
        """Reads a part of a tensor, as `jax.make_array_from_callback` asks for it.

        Only the wanted range of the leading axis is read; the other axes are cut in memory.

        Args:
          name: one of `names()`.
          index: a slice for each of the first axes; the others are whole. Steps are positive.
          any_dtype: as for `read`.

        Returns:
          An array of its own, contiguous.

        Raises:
          UserError: as `read`.
          ValueError: the index does not fit the tensor.
        """
        entry, shard = self._entry(name), self._place[name]
        if entry.dtype not in FLOATS and not any_dtype:
            raise UserError(
                f"{shard.path} holds {entry.dtype} in tensor {shown(name)}, and weights are "
                "floating-point numbers: save the model without quantisation"
            )
        if len(index) > len(entry.shape) or any((s.step or 1) < 1 for s in index):
            raise ValueError(f"{index} does not fit {name} of shape {entry.shape}")
        if not index:
            return (
                self._bytes(shard, entry.start, entry.size).view(entry.dtype).reshape(entry.shape)
            )
        start, stop, step = index[0].indices(entry.shape[0])
        stop = max(start, stop)
        row = entry.dtype.itemsize * math.prod(entry.shape[1:])
        raw = self._bytes(shard, entry.start + start * row, (stop - start) * row)
        rows = raw.view(entry.dtype).reshape(stop - start, *entry.shape[1:])
        return np.ascontiguousarray(rows[(slice(None, None, step), *index[1:])])

    def _entry(self, name: str) -> Entry:
        shard = self._place.get(name)
        if shard is None:
            close = difflib.get_close_matches(name, self._place, n=1)
            near = f"; the nearest name is {close[0]}" if close else ""
            raise UserError(f"{self.folder} has no tensor {name}{near}")
        return shard.entries[name]

    @staticmethod
    def _bytes(shard: _Shard, start: int, size: int) -> np.ndarray:
        """Reads bytes into an array: uint8 [size].

        By reading and not by mapping the file into memory: a mapped page counts as the process's
        memory, and one that vanishes kills the process.
        """
        with open_file(shard.real) as file:
            if _identity(file) != shard.identity:
                raise UserError(f"{shard.path} changed while it was read: start again")
            result = np.empty(size, np.uint8)
            try:
                file.seek(start)
                left = memoryview(result)
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise UserError(f"{shard.path} ended while it was read: start again")
                    left = left[count:]
            except OSError as error:
                raise UserError(f"{shard.path} cannot be read: {error.strerror}") from None
        return result


def open_weights(folder: str | os.PathLike) -> Weights:
    """Opens a folder and checks all that can be checked without reading a tensor.

    Raises:
      UserError: it is no such folder, or anything in it is not as the formats want it; names the
        file.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise no_folder(folder)
    single, index = find_file(folder, SINGLE), find_file(folder, INDEX)
    if single and index:
        raise UserError(
            f"{folder} holds both {SINGLE} and {INDEX}: remove the one that is left from an "
            "earlier save"
        )
    if not single and not index:
        raise no_weights(folder)
    config = read_json(folder, "config.json")
    shards = [_open_shard(folder, SINGLE)] if single else _open_shards(folder)
    total = sum(shard.identity[2] for shard in shards)
    if total > MAX_BYTES:
        raise UserError(f"{folder} holds {total} bytes of weights, the limit is {MAX_BYTES}")
    weights = Weights(folder, config, shards)
    if not weights.names():
        raise UserError(f"{shards[0].path} holds no tensor: download or save it again")
    return weights


def _open_shard(folder: Path, name: str) -> _Shard:
    path, real = folder / name, find_file(folder, name)
    if real is None:
        raise UserError(f"{path} is missing, {INDEX} names it: download it as well")
    with open_file(real) as file:
        return _Shard(path, real, _identity(file), read_header(file, path))


def _open_shards(folder: Path) -> list[_Shard]:
    """Opens the shards of an index; it and they must tell the same of every tensor."""
    path = folder / INDEX
    places = read_json(folder, INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path} has no weight_map: download or save it again")
    for name, file in places.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise UserError(
                f"{path} places tensor {shown(name)} in {shown(file)}, which is no .safetensors "
                "file: download or save it again"
            )
    shards = [_open_shard(folder, file) for file in sorted(set(places.values()))]
    found: dict[str, Path] = {}
    for shard in shards:
        for name in shard.entries:
            other = found.setdefault(name, shard.path)
            if other != shard.path:
                raise UserError(
                    f"{shard.path} holds tensor {shown(name)}, and so does {other.name}"
                )
            if places.get(name) != shard.path.name:
                raise UserError(
                    f"{shard.path} holds tensor {shown(name)}, which {INDEX} does not place there: "
                    "they are of different saves, download both again"
                )
    for name, file in places.items():
        if name not in found:
            raise UserError(
                f"{folder / file} lacks tensor {shown(name)}, which {INDEX} places there: they "
                "are of different saves, download both again"
            )
    return shards
