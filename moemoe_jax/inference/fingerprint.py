"""What answers depend on, in a few short digests: the input, the model and the settings."""

from collections.abc import Iterable, Mapping
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.formats.files import REJECTS
from moemoe_jax.data.sources import CATALOGUE, resolve
from moemoe_jax.inference.loading import Loaded
from moemoe_jax.workdir import WorkDir


def fingerprint(
    loaded: Loaded, workdir: WorkDir, spec: str, output: Path, settings: Mapping[str, Any]
) -> dict[str, str]:
    """The digests of all that the answers to a source depend on.

    Args:
      loaded: the model.
      workdir: where it is from.
      spec: of the input, as `data.sources.open_source` takes it.
      output: where the answers go; what lies beside the input under that name is no input.
      settings: what else the answers depend on, printable.
    """
    config = loaded.config
    said = (config.model, config.answer, _what_matters(config.data), sorted(settings.items()))
    return {
        "input": input_digest(spec, output),
        "model": _joined([_array_digest(loaded.params), _folder_digest(workdir.tokenizer, "")]),
        "settings": _joined(map(repr, said)),
    }


def input_digest(spec: str, output: Path) -> str:
    """Of the input file, or of the files that lie directly in the folder (so of no image there)."""
    if spec.partition(":")[0] == CATALOGUE:
        return _joined([spec])
    return _folder_digest(resolve(spec)[1], output.name)


def _what_matters(data: DataConfig) -> DataConfig:
    """The settings of data, but for those of how it is read."""
    fixed = {"threads": 0, "prefetch": 0, "cache_images_mib": 0, "cache_text_mib": 0}
    return dataclasses.replace(data, **fixed, source="-", eval_source="", max_reject_fraction=1.0)


def _array_digest(tree: Any) -> str:
    found = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(tree):
        found.update(f"{leaf.shape} {leaf.dtype}".encode())
        found.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    return found.hexdigest()


def _folder_digest(path: Path, ours: str) -> str:
    """Of a file's content, or of names and contents of a folder's own files."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    parts = []
    for file in files:
        if file.name.startswith(".") or file.name == REJECTS:
            continue
        if path.is_dir() and ours and file.name.startswith(ours):
            continue
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16))
        parts.append(f"{file.name} {digest.hexdigest()}")
    return _joined(parts)


def _joined(parts: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
