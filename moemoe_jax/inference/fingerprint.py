"""What answers depend on: digests of the input and the model, and the settings."""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.formats.files import is_rejects
from moemoe_jax.data.sources import CATALOGUE, resolve
from moemoe_jax.inference.loading import Loaded
from moemoe_jax.workdir import WorkDir


def fingerprint(
    loaded: Loaded, workdir: WorkDir, spec: str, output: Path, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the answers to a source depend on, by topic: digests, and the settings themselves.

    Args:
      loaded: the model.
      workdir: where it is from.
      spec: of the input, as `data.sources.open_source` takes it.
      output: where the answers go; in a folder of the input, that file is no input.
      asked: what else the answers depend on, of JSON types, by a name that a user knows it by.

    Returns:
      JSON types: what is read back from a file is equal.
    """
    config = loaded.config
    model, answer, data = map(
        dataclasses.asdict, (config.model, config.answer, what_matters(config.data))
    )
    settings = {"model": model, "answer": answer, "data": data, **asked}
    return {
        "input": input_digest(spec, output),
        "weights": _array_digest(loaded.params),
        "tokenizer": content_digest(workdir.tokenizer),
        "settings": json.loads(json.dumps(settings)),
    }


def input_digest(spec: str, output: Path) -> str:
    """Of the content of the input: a file, or the files right in a folder.

    Of other files that its records are read from, such as images, the source tells a digest of
    sizes and times of change: see `files_digest` of `data.sources.RecordSource`.
    """
    if spec.partition(":")[0] == CATALOGUE:
        return _joined([spec])
    path = resolve(spec)[1]
    return content_digest(path, output.name if output.resolve().parent == path.resolve() else "")


def what_matters(data: DataConfig) -> DataConfig:
    """The settings of data, but for those of how it is read."""
    fixed = {"threads": 0, "prefetch": 0, "cache_images_mib": 0, "cache_text_mib": 0}
    return dataclasses.replace(data, **fixed, source="-", max_reject_fraction=1.0)


def _array_digest(tree: Any) -> str:
    found = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(tree):
        found.update(f"{leaf.shape} {leaf.dtype}".encode())
        found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    return found.hexdigest()


def content_digest(path: Path, ours: str = "") -> str:
    """Of a file, or the files right in a folder: not hidden ones, lists of rejects and `ours`."""
    if path.is_file():
        return _content(path)
    return _joined(
        f"{entry.name} {_content(entry)}"
        for entry in sorted(path.iterdir())
        if entry.is_file()
        and not entry.name.startswith(".")
        and entry.name != ours
        and not is_rejects(entry.name)
    )


def _content(file: Path) -> str:
    with file.open("rb") as content:
        new = functools.partial(hashlib.blake2b, digest_size=16)
        return hashlib.file_digest(content, new).hexdigest()


def _joined(parts: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
