"""Taking a record's image files into the record, for formats that hold everything in one file."""

import dataclasses
from pathlib import Path

from moemoe_jax.data.records import Record
from moemoe_jax.data.rejects import Rejects


def embedded(record: Record, file: Path | str, line: int, rejects: Rejects) -> Record:
    """The record with encoded bytes in place of image paths.

    An image that cannot be read is left out and goes to `rejects` under `file` and `line`.
    """
    sources = {}
    for name, value in record.sources.items():
        parts = []
        for part in value if isinstance(value, tuple) else (value,):
            try:
                parts.append(part.read_bytes() if isinstance(part, Path) else part)
            except OSError as error:
                reason = f"unreadable image: {part.name}: {error.strerror}"
                rejects.add(file, line, reason, record.id)
        if parts:
            sources[name] = tuple(parts) if isinstance(value, tuple) else parts[0]
    return dataclasses.replace(record, sources=sources)
