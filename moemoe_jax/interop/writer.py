"""Writes a folder that `transformers` loads: one tensor in memory at a time, whole or not at all.

The same tensors give the same bytes, those of the safetensors library.
"""

from collections.abc import Callable, Iterable, Mapping
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moemoe_jax.files import new_folder
from moemoe_jax.interop.safetensors_header import DTYPES, check_name, write_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_weights(
    folder: str | os.PathLike,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, tuple[int, ...], Any]],
    read: Callable[[str], np.ndarray],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Writes config.json and the tensors into a new folder.

    Args:
      folder: must not exist, or be empty.
      config: the content of config.json.
      tensors: name, shape and dtype of each, in any order.
      read: gives one tensor by its name; called once for each, and its result is let go before
        the next.
      max_shard_bytes: above, the tensors are spread over several files with an index.
      finish: writes what else belongs into the folder (a tokenizer), whose path it is given.

    Raises:
      UserError: there is something at `folder`, or it cannot be written (a full disk).
      ValueError: a name stands twice or is none, a dtype is none of the format's, or `read` gives
        another shape or dtype than announced.
    """
    shards = _plan([_Tensor(n, tuple(s), np.dtype(d)) for n, s, d in tensors], max_shard_bytes)
    single = len(shards) == 1
    names = [
        SINGLE if single else f"model-{i:05}-of-{len(shards):05}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    with new_folder(folder) as part:
        _write_json(part / "config.json", config)
        for name, shard in zip(names, shards, strict=True):
            _write_shard(part / name, shard, read)
        if not single:
            places = {t.name: name for name, s in zip(names, shards, strict=True) for t in s}
            total = sum(tensor.size for shard in shards for tensor in shard)
            index = {"metadata": {"total_size": total}, "weight_map": places}
            _write_json(part / INDEX, index)
        if finish:
            finish(part)


def _plan(tensors: list[_Tensor], max_shard_bytes: int) -> list[list[_Tensor]]:
    """Spreads tensors over shards by name, and orders each shard as the library does."""
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError("a name stands twice among the tensors to write")
    shards: list[list[_Tensor]] = [[]]
    left = max_shard_bytes
    for tensor in sorted(tensors):
        check_name(tensor.name)
        if tensor.dtype not in DTYPES.values():
            raise ValueError(f"{tensor.name} has the dtype {tensor.dtype}")
        if tensor.size > left and shards[-1]:
            shards.append([])
            left = max_shard_bytes
        shards[-1].append(tensor)
        left -= tensor.size
    order = {dtype: i for i, dtype in enumerate(DTYPES.values())}
    return [sorted(shard, key=lambda t: (order[t.dtype], t.name)) for shard in shards]


def _write_shard(path: Path, shard: list[_Tensor], read: Callable[[str], np.ndarray]) -> None:
    with path.open("wb") as file:
        file.write(write_header(shard))
        for tensor in shard:
            array = np.asarray(read(tensor.name))
            if (array.shape, array.dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(
                    f"{tensor.name} is {array.dtype} {array.shape}, and was announced as "
                    f"{tensor.dtype} {tensor.shape}"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            del array


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")
