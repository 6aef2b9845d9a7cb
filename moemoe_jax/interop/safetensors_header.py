"""The header of a safetensors file: read and checked before any tensor is, and written.

A file is eight bytes, the header's length as a little-endian number; the header, a JSON object;
and the tensors' bytes. The header gives every name its dtype, its shape and where its bytes lie,
counted from the header's end. https://github.com/huggingface/safetensors describes the format.
The library of that name lets the last of two equal names win; here they are an error.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import math
import os
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from moemoe_jax.errors import UserError
from moemoe_jax.files import parse_json, read_at_most, shown

# In the order in which the library lays tensors out: every tensor then starts at a multiple of its
# item's size. The packed and the 8-bit floats of the format are of no use to a model in float32.
DTYPES = {
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
FLOATS = tuple(DTYPES[name] for name in ("F64", "F32", "BF16", "F16"))
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS, MAX_NAME = 16, 500
_METADATA = "__metadata__"
# What lies under the name of a safetensors file where it is none, by its first bytes.
_OTHERS = (
    (b"\x80", "a pickle, never loaded as that could run any code: get the real file"),
    (b"PK\x03\x04", "a zip of pickles, never loaded as that could run any code: get the real file"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (b"<", "a web page: download the file itself"),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `start` counts from the file's beginning; both in bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(file: BinaryIO, path: str | os.PathLike) -> dict[str, Entry]:
    """Reads and checks the header of an open file.

    Args:
      file: at its beginning, unbuffered.
      path: the file's name for messages.

    Returns:
      Name -> entry, in the order of the bytes, which the entries cover without gap or overlap.

    Raises:
      UserError: anything is not as the format wants it.
    """
    size = os.fstat(file.fileno()).st_size
    first = read_at_most(file, 32)
    try:
        length = _length(first, size)
        file.seek(8)
        header = read_at_most(file, length)
        if len(header) < length:
            raise ValueError("it ended while it was read")
        return _entries(parse_json(header), 8 + length, size)
    except ValueError as error:
        kind = next((what for magic, what in _OTHERS if first.startswith(magic)), None)
        if kind and first[8:9] != b"{":
            raise UserError(f"{path} is not a safetensors file but {kind}") from None
        message = f"{path} is not a whole safetensors file: {error}; download or save it again"
        raise UserError(message) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _length(first: bytes, size: int) -> int:
    if len(first) < 8:
        raise ValueError(f"it has only {size} bytes")
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header would have {length} bytes, the limit is {MAX_HEADER_BYTES}")
    if 8 + length > size:
        raise ValueError(f"its header would have {length} bytes, the whole file has {size}")
    if first[8:9] != b"{":
        raise ValueError("its header is not a JSON object")
    return length


def _entries(header: Mapping[str, Any], begin: int, end: int) -> dict[str, Entry]:
    """Checks each tensor by itself, and then that their bytes fill the file."""
    metadata = header.get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{_METADATA} must map texts to texts")
    entries = {n: _entry(n, value, begin) for n, value in header.items() if n != _METADATA}
    ordered = sorted(entries.items(), key=lambda item: (item[1].start, item[1].size))
    position, before = begin, "the header"
    for name, entry in ordered:
        if entry.start != position:
            what = "overlaps" if entry.start < position else "leaves a gap after"
            raise ValueError(f"tensor {shown(name)} {what} {before}")
        position, before = entry.start + entry.size, f"tensor {shown(name)}"
    if position != end:
        raise ValueError(f"its tensors need {position} bytes, the whole file has {end}")
    return dict(ordered)


def _entry(name: str, value: Any, begin: int) -> Entry:
    check_name(name)
    what = f"tensor {shown(name)}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what} must have dtype, shape and data_offsets, not {shown(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{what} has the dtype {shown(dtype)}, known are {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{what} has the shape {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{what} has the offsets {shown(offsets)}")
    start, stop = offsets
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if stop - start != needed:
        raise ValueError(f"{what} needs {shown(needed)} bytes and has {shown(stop - start)}")
    return Entry(DTYPES[dtype], tuple(shape), begin + start, needed)


def _are_sizes(value: Any) -> bool:
    """Whether it is a list of natural numbers; True and 2.0 are none."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def check_name(name: str) -> None:
    """Refuses what cannot name a tensor in a table or a message.

    Raises:
      ValueError: it is empty, too long or not printable, or has a meaning of its own.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name == _METADATA:
        raise ValueError(f"{shown(name)} cannot name a tensor")


def write_header(tensors: Iterable[tuple[str, tuple[int, ...], np.dtype]]) -> bytes:
    """The beginning of a file that holds these tensors one after another, in this order.

    Its length is a multiple of eight. transformers wants the format "pt" in the metadata.
    """
    known = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    position = 0
    for name, shape, dtype in tensors:
        stop = position + math.prod(shape) * dtype.itemsize
        offsets = [position, stop]
        header[name] = {"dtype": known[dtype], "shape": list(shape), "data_offsets": offsets}
        position = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
