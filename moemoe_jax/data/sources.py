"""Where records come from: one interface over all formats, and one way to name a source.

A source is named by a path, whose format is found out, or by "format:path". "catalogue" is drawn
by a program and needs no path.
"""

from collections.abc import Mapping, Sequence
import difflib
import importlib
import itertools
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

from absl import logging
import numpy as np

from moemoe_jax.data.records import Record
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.splits import (
    DEFAULT_FRACTIONS,
    SPLITS,
    SplitSource,
    check_fractions,
    id_hash,
)
from moemoe_jax.errors import UserError
from moemoe_jax.files import shown

# A new format is one file in `formats/` (its `__init__` says what it holds) and one line here.
FORMATS: dict[str, str] = {
    "fashion": "moemoe_jax.data.formats.fashion",
    "jsonl": "moemoe_jax.data.formats.jsonl",
    "parquet": "moemoe_jax.data.formats.parquet",
    "tfds": "moemoe_jax.data.formats.tfds",
    "wdc_pave": "moemoe_jax.data.formats.wdc_pave",
}
CATALOGUE = "catalogue"

# A fifth of a second's work, however large a split is.
_FIRST_IDS = 20_000


@runtime_checkable
class RecordSource(Protocol):
    """Records by number; parsed when asked for, safe from several threads, and picklable.

    Attributes:
      name: how messages call it.
      splits: the splits that the source itself comes in, () where it comes in one piece.

    A source that knows the hashes of its ids without reading the records has also
    `id_hashes() -> uint64 [N]` (see `moemoe_jax.data.splits`). One whose images were made smaller
    has `image_size`, the pixels of their longer side, or 0. One that reads other files than those
    that its path names has `files_digest`, which changes when they do (`data.file_stats`).
    """

    name: str
    splits: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def open_source(
    spec: str,
    split: str | None = None,
    rejects: Rejects | None = None,
    *,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    split_seed: int = 0,
) -> RecordSource:
    """Opens a source, or one split of it.

    Args:
      spec: a path, "format:path", "catalogue" or "catalogue:...".
      split: None for all records. A split that the source comes in is taken as it is; "val" and
        "test" are otherwise cut from the rest by hash of the id.
      rejects: where bad records go; None counts them in a list of its own.
      fractions: the shares of "val" and "test" where they are cut.
      split_seed: another seed cuts other splits.

    Raises:
      UserError: no such path, format or split, or too many rejects.
    """
    return open_splits(spec, (split,), rejects, fractions=fractions, split_seed=split_seed)[split]


def open_splits(
    spec: str,
    splits: Sequence[str | None],
    rejects: Rejects | None = None,
    *,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    split_seed: int = 0,
) -> dict[str | None, RecordSource]:
    """Opens several splits of a source, reading each file once; see `open_source`.

    Where the source itself comes in splits, ids that are in two of those read are told in a
    warning: who tests what was trained on learns nothing. Of those that are not read, as a training
    does not read its test split, the first `_FIRST_IDS` ids are looked for among those of train.
    """
    check_fractions(fractions)
    rejects = Rejects() if rejects is None else rejects
    if spec.split(":", 1)[0] == CATALOGUE:
        from moemoe_jax.data.catalogue import CatalogueSource

        tail = spec.partition(":")[2]
        return {split: CatalogueSource.from_spec(tail, split) for split in splits}
    module, path = resolve(spec)
    own = module.splits(path)

    parts: dict[str | None, RecordSource] = {}

    def opened(part: str | None) -> RecordSource:
        if part in parts:
            return parts[part]
        source = parts[part] = module.open_records(path, part, rejects)
        if not len(source):
            rejects.check()  # where all were rejected, say why
            raise UserError(f"no record in {path}; name data that has some")
        source.splits = own if part is None else ()
        return source

    with rejects.found_by_all():
        found = {
            split: _pick(opened, own, split, spec=spec, fractions=fractions, seed=split_seed)
            for split in splits
        }
    rejects.check()
    _warn_of_shared(spec, parts)
    if hasattr(parts.get("train"), "id_hashes") and hasattr(module, "read_ids"):
        for split in own:
            if split not in parts:
                first = list(itertools.islice(module.read_ids(path, split), _FIRST_IDS))
                _warn_of_first(spec, split, first, parts["train"])
    return found


def _warn_of_shared(spec: str, parts: Mapping[str | None, RecordSource]) -> None:
    """Says which own splits share ids, where these are known without reading the records."""
    known = [(n, s) for n, s in parts.items() if n is not None and hasattr(s, "id_hashes")]
    for (one, source), (other, beside) in itertools.combinations(known, 2):
        shared = np.flatnonzero(np.isin(source.id_hashes(), beside.id_hashes()))
        if shared.size:
            ids = f"{len(source)} ids"
            _warn(spec, shared.size, ids, one, other, source[int(shared[0])].id)


def _warn_of_first(spec: str, split: str, ids: Sequence[str], train: RecordSource) -> None:
    """Says how many of the first ids of a split are trained on."""
    hashes = np.array([id_hash(one) for one in ids], np.uint64)
    shared = np.flatnonzero(np.isin(hashes, train.id_hashes()))
    if shared.size:
        first = "first " if len(ids) == _FIRST_IDS else ""
        _warn(spec, shared.size, f"{first}{len(ids)} ids", split, "train", ids[shared[0]])


def _warn(spec: str, count: int, ids: str, one: str, other: str, example: str) -> None:
    logging.warning(
        "%s: %d of the %s of split %s are in split %s as well, such as %s; take them out of one: "
        "results on products that a model was trained on mean little",
        spec, count, ids, one, other, shown(example),
    )  # fmt: skip


def _pick(opened, own, split, *, spec, fractions, seed) -> RecordSource:
    """One split: the source's own, or cut from all of it, or from its train split."""
    cut = {name: share for name, share in fractions.items() if name not in own and share > 0}
    if split is None or (split in own and (split != "train" or not cut)):
        return opened(split)
    if split != "train" and split not in cut:
        raise UserError(
            f"{spec!r} has no split {split!r}; choose one of: "
            f"{', '.join(own or SPLITS)}, or give {split!r} a share to be cut"
        )
    if own and "train" not in own:
        raise UserError(f"{spec!r} has no split {split!r}; choose one of: {', '.join(own)}")
    return SplitSource(opened("train" if own else None), split, cut, seed)


def own_splits(spec: str) -> tuple[str, ...]:
    """The splits that a source comes in; () where it comes in one piece."""
    if spec.split(":", 1)[0] == CATALOGUE:
        from moemoe_jax.data.catalogue import CatalogueSource

        return CatalogueSource.splits
    module, path = resolve(spec)
    return module.splits(path)


def check_spec(spec: str) -> None:
    """Refuses, without reading a record, what names no data; raises as `resolve` does."""
    if spec.partition(":")[0] != CATALOGUE:
        resolve(spec)


def resolve(spec: str) -> tuple[ModuleType, Path]:
    """The format module and the path that a spec names.

    Raises:
      UserError: no such path, no such format, or a format that cannot be told.
    """
    head, colon, tail = spec.partition(":")
    if colon and head in FORMATS:
        path = Path(tail).expanduser()
        _check_exists(path)
        return importlib.import_module(FORMATS[head]), path
    path = Path(spec).expanduser()
    if colon and not path.exists() and "/" not in head:
        near = difflib.get_close_matches(head, [*FORMATS, CATALOGUE], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"unknown source format {head!r} in {spec!r}; {hint}"
            f"known: {', '.join(sorted([*FORMATS, CATALOGUE]))}"
        )
    _check_exists(path)
    modules = {name: importlib.import_module(module) for name, module in FORMATS.items()}
    found = [name for name, module in modules.items() if module.detect(path)]
    if len(found) == 1:
        return modules[found[0]], path
    if found:
        raise UserError(
            f"{path} holds data of several formats; write one of "
            + ", ".join(f"'{name}:{path}'" for name in found)
        )
    if path.is_file():
        raise UserError(
            f"cannot tell the format of {path}: write its records to a .jsonl file, one JSON "
            "object a line with 'id' and 'sources', or to a .parquet file with these columns"
        )
    raise UserError(
        f"cannot tell the format of {path}: no styles.csv, *.jsonl, *.parquet or "
        f"dataset_info.json there; write 'format:{path}' with one of {', '.join(FORMATS)}"
    )


def _check_exists(path: Path) -> None:
    """Raises UserError that says what lies where the path should, where there is no such path."""
    if path.exists():
        return
    folder, wanted = path.parent, path.name
    while not folder.is_dir() and folder != folder.parent:
        folder, wanted = folder.parent, folder.name
    entries = folder.iterdir() if folder.is_dir() else []
    names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4)
    if near:
        hint = f"near it: {', '.join(str(folder / name) for name in near)}"
    else:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        hint = f"{folder.absolute()} holds {', '.join(names[:3]) or 'nothing'}{more}"
    raise UserError(f"no such data: {path}; {hint}; give the path of a data file or folder")
