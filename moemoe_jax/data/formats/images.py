"""Taking a record's image files into the record, for formats that hold everything in one file."""

from collections.abc import Callable
import dataclasses
from pathlib import Path

from moemoe_jax.data.images import ImageError
from moemoe_jax.data.records import Image, Record
from moemoe_jax.data.rejects import Rejects


def encoded_file(image: Image) -> bytes:
    """An image's encoded bytes, whether or not they are an image's.

    Raises:
      OSError: there is no such file, or it cannot be read.
    """
    return image.read_bytes() if isinstance(image, Path) else image


def embedded(
    record: Record,
    file: Path | str,
    line: int,
    rejects: Rejects,
    encode: Callable[[Image], bytes] = encoded_file,
) -> Record:
    """The record with encoded bytes in place of its images.

    An image that cannot be read is left out and goes to `rejects` under its own path, or where it
    is in the record, under `file` and `line`.

    Args:
      record: with paths, or encoded bytes.
      file: where it is from, and `line`.
      line: of the file.
      rejects: gets what `encode` refuses.
      encode: makes the bytes; raises OSError or ImageError.
    """
    sources = {}
    for name, value in record.sources.items():
        parts = []
        for part in value if isinstance(value, tuple) else (value,):
            place = (part, 0) if isinstance(part, Path) else (file, line)
            try:
                parts.append(part if isinstance(part, str) else encode(part))
            except OSError as error:
                rejects.add(*place, f"unreadable image: {error.strerror}", record.id)
            except ImageError as error:
                rejects.add(*place, str(error), record.id)
        if parts:
            sources[name] = tuple(parts) if isinstance(value, tuple) else parts[0]
    return dataclasses.replace(record, sources=sources)
