"""Writes records with in-memory images as JSON Lines and image files, for people to look at."""

import json
from pathlib import Path
from typing import Any

from moemoe_jax.data.records import record_to_mapping


def write_jsonl(source: Any, path: str | Path, limit: int | None = None) -> int:
    """Writes the first records of a source, one JSON object a line.

    The images go to the folder `images` beside the file and are named after the record; the file
    names them relative to itself, so that it can be read as any other JSON Lines source.

    Args:
      source: anything with `len` and records by index, whose images are encoded PNG bytes.
      path: the file to write; its folder is made where it is missing.
      limit: how many records at most; None = all.

    Returns:
      The number of records written.
    """
    path = Path(path)
    folder = path.parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    count = len(source) if limit is None else min(limit, len(source))
    with path.open("w", encoding="utf-8") as lines:
        for index in range(count):
            record = source[index]
            mapping, images = record_to_mapping(record)
            names = [f"images/{record.id}-{k}.png" for k in range(len(images))]
            for name, image in zip(names, images, strict=True):
                (path.parent / name).write_bytes(image)
            for source_name, value in mapping["sources"].items():
                if isinstance(value, dict):
                    mapping["sources"][source_name] = names[value["blob"]]
            lines.write(json.dumps(mapping, ensure_ascii=False) + "\n")
    return count
