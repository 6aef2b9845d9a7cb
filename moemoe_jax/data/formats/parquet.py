"""Records in Parquet: one file or a folder of them, with the columns of the record format.

`sources` is a struct (images as binary, as paths relative to the file, or as structs of `bytes` and
`path`, of which the bytes count where there are any), `attributes` a map from name to value; any of
them may also be a text column that holds JSON. In a map, null says "known to have no answer"; in a
struct every row has every field, so null there says "not known". Numbers are taken as in JSON; one
of single precision has the few digits that tell it from others, so that 0.1 is 0.1.

Parquet is read by row group. Groups are kept up to a fixed number of bytes, which serves data that
fit in memory and reads in order; for random reads of larger data turn them into TFDS with
`python -m launch.prepare_data`.

Shapes: N records.
"""

from collections import OrderedDict
from collections.abc import Iterator
import contextlib
import itertools
from pathlib import Path
import threading
from typing import Any

import numpy as np

from moemoe_jax.data.file_stats import FileStats
from moemoe_jax.data.formats import files, jsonl
from moemoe_jax.data.records import Record, RecordError, identity, parse_record
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.splits import id_hash
from moemoe_jax.errors import UserError

SUFFIXES = (".parquet",)
CACHE_BYTES = 2**30
_OBJECTS = ("sources", "attributes", "alternatives", "evidence", "questions")


def detect(path: Path) -> bool:
    """A `.parquet` file, or a folder with some."""
    return bool(files.find_files(path, SUFFIXES))


def splits(path: Path) -> tuple[str, ...]:
    """The splits that the file names tell."""
    return files.split_names(path, SUFFIXES)


def open_records(path: Path, split: str | None, rejects: Rejects) -> "ParquetSource":
    """Opens a file, or the folder's files of one split."""
    return ParquetSource(str(path), files.files_of(path, SUFFIXES, split), rejects)


def read_ids(path: Path, split: str) -> Iterator[str]:
    """The ids of a split, from their column alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files.files_of(path, SUFFIXES, split):
        with (
            contextlib.suppress(pa.ArrowException, OSError, KeyError),
            pq.ParquetFile(file) as rows,
        ):
            for batch in rows.iter_batches(4096, columns=["id"]):
                for value in batch.column("id").to_pylist():
                    with contextlib.suppress(RecordError):
                        yield identity({"id": value})


class ParquetSource:
    """A RecordSource over Parquet files.

    Opening reads all columns but the binary ones once: bad rows are rejected, and of the good ones
    only the place is kept.

    Attributes:
      files_digest: of the image files that the records name (`data.file_stats`).
    """

    splits: tuple[str, ...] = ()

    def __init__(self, name: str, paths: list[Path], rejects: Rejects):
        """Indexes the files.

        Raises:
          UserError: a file is not Parquet, or has no column "id" or "sources".
        """
        self.name = name
        self._paths = paths
        self._places: list | np.ndarray = []  # int64 [N, 3]: file, row group, row of the group
        self._reset()
        hashes, ids, images = [], set(), FileStats()
        for number, path in enumerate(paths):
            for group, row, line, mapping in _index_rows(path, rejects):
                try:
                    record = parse_record(_clean(mapping), path.parent)
                    if record.id in ids:
                        raise RecordError("duplicate id")
                except RecordError as error:
                    rejects.add(path, line, str(error), _given_id(mapping))
                    continue
                ids.add(record.id)
                images.add_images(record)
                self._places.append((number, group, row))
                hashes.append(id_hash(record.id))
        self._places = np.array(self._places, np.int64).reshape(-1, 3)
        self._hashes = np.array(hashes, np.uint64)
        self.files_digest = images.digest()

    def _reset(self) -> None:
        self._cache: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __getstate__(self):
        """What a worker process needs: the places, not what is cached."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_bytes", "_lock")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._reset()

    def _group(self, file: int, group: int):
        """A row group as an Arrow table, from the cache where it is there."""
        import pyarrow.parquet as pq

        with self._lock:
            if (file, group) in self._cache:
                self._cache.move_to_end((file, group))
                return self._cache[file, group]
            table = _as_in_json(pq.ParquetFile(self._paths[file]).read_row_group(group))
            self._cache[file, group] = table
            self._bytes += table.nbytes
            while self._bytes > CACHE_BYTES and len(self._cache) > 1:
                self._bytes -= self._cache.popitem(last=False)[1].nbytes
            return table

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.name}")
        file, group, row = (int(x) for x in self._places[index])
        try:
            mapping = self._group(file, group).slice(row, 1).to_pylist()[0]
            return parse_record(_clean(mapping), self._paths[file].parent)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self._paths[file]} changed while it was in use ({error}); start the job again"
            ) from error

    def __repr__(self) -> str:
        return f"ParquetSource({self.name}, {len(self)} records)"

    def id_hashes(self) -> np.ndarray:
        """uint64 [N]: the hash of each id."""
        return self._hashes


def _index_rows(path: Path, rejects: Rejects):
    """Yields (row group, row of the group, row of the file from 1, mapping without binaries)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error}); write it again") from error
    with file:
        missing = {"id", "sources"} - set(file.schema_arrow.names)
        if missing:
            raise UserError(f"{path} has no column {min(missing)!r}; a record needs id and sources")
        rejects.saw(path, file.metadata.num_rows)
        line = itertools.count(1)
        for group in range(file.num_row_groups):
            row, columns = 0, _columns(file, group)
            for batch in file.iter_batches(1024, row_groups=[group], columns=columns):
                for mapping in _as_in_json(pa.Table.from_batches([batch])).to_pylist():
                    mapping.setdefault("sources", {})  # where it holds nothing but binaries
                    yield group, row, next(line), mapping
                    row += 1


def _columns(file: Any, group: int) -> list[str]:
    """The columns of a row group that tell of its records what can be wrong with them.

    Binaries are left out, and the `path` beside an image's `bytes`, which is not looked at. But
    where some images of the group have no bytes, both are read: then the path may count.
    """
    chunks, schema = file.metadata.row_group(group), file.schema
    columns = [schema.column(number) for number in range(len(schema))]
    paths = [column.path for column in columns]
    left_out = set()
    for number, column in enumerate(columns):
        if column.physical_type != "BYTE_ARRAY" or column.logical_type.type != "NONE":
            continue
        struct, _, field = column.path.rpartition(".")
        beside = f"{struct}.path"
        if field == "bytes" and beside in paths:
            found = chunks.column(number).statistics
            if found is None or not found.has_null_count or found.null_count:
                continue
            left_out.add(beside)
        left_out.add(column.path)
    return [path for path in paths if path not in left_out]


def _as_in_json(table: Any) -> Any:
    """An Arrow table with its numbers of single precision as the doubles that are written alike."""
    import pyarrow as pa

    for number, field in enumerate(table.schema):
        if (wider := _retyped(field.type, pa.float64())) != field.type:
            texts = table.column(number).cast(_retyped(field.type, pa.string()))
            table = table.set_column(number, field.name, texts.cast(wider))
    return table


def _retyped(kind: Any, single: Any) -> Any:
    """An Arrow type with `single` in place of single precision, at any depth."""
    import pyarrow as pa

    if pa.types.is_float32(kind):
        return single
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _retyped(field.type, single)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _retyped(kind.item_type, single))
    for found, made in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
        if found(kind):
            return made(_retyped(kind.value_type, single))
    return kind


def _given_id(mapping: dict[str, Any]) -> str | None:
    return None if mapping.get("id") is None else str(mapping["id"])


def _clean(mapping: dict[str, Any]) -> dict[str, Any]:
    """A row as `parse_record` wants it: maps as objects, JSON texts decoded, no struct nulls."""
    cleaned = {key: _plain(key, value) for key, value in mapping.items()}
    return {key: value for key, value in cleaned.items() if value is not None}


def _plain(key: str, value: Any) -> Any:
    if key not in _OBJECTS or value is None:
        return value
    if isinstance(value, str):
        try:
            return jsonl.decode(value)
        except RecordError:
            raise
        except ValueError as error:
            raise RecordError(f"not JSON: column {key!r}: {error}") from error
    if key == "questions" and isinstance(value, list):
        return [_without_nulls(one) for one in value]
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
        return dict(value)  # a map comes as pairs, none of them if it is empty
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    # What is no struct is for `parse_record` to refuse.
    if not isinstance(value, dict):
        return value
    return {name: part for name, part in value.items() if part is not None}
