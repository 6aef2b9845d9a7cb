"""Writing records to one Parquet file, images as encoded bytes inside it."""

from pathlib import Path
from typing import Any

from moemoe_jax.data.formats.images import embedded
from moemoe_jax.data.records import record_to_mapping
from moemoe_jax.data.rejects import Rejects


def write_parquet(
    source: Any, path: Path | str, rejects: Rejects, rows_per_group: int = 256
) -> int:
    """Writes a source to a file that `formats/parquet.py` reads.

    A source that is a list in any record is a list in all of them.

    Args:
      source: a RecordSource; it is read twice, first to learn which sources there are.
      path: the file to write; it appears when it is complete.
      rejects: where images that cannot be read go; their records are written without them.
      rows_per_group: records of a row group, the unit in which readers read.

    Returns:
      The number of records written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = _source_types(source)
    text = pa.string()
    schema = pa.schema(
        [
            ("id", text),
            ("sources", pa.struct(list(kinds.items()))),
            ("product_type", text),
            ("marketplace", text),
            ("attributes", pa.map_(text, text)),
            ("alternatives", pa.map_(text, pa.list_(text))),
            ("questions", pa.list_(pa.struct([("question", text), ("answers", pa.list_(text))]))),
            ("evidence", pa.map_(text, text)),
        ]
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with pq.ParquetWriter(part, schema) as writer:
        for start in range(0, len(source), rows_per_group):
            stop = min(start + rows_per_group, len(source))
            rows = [_row(source, i, kinds, rejects) for i in range(start, stop)]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    part.replace(path)
    return len(source)


def _source_types(source: Any) -> dict[str, Any]:
    """Source name -> Arrow type, over all records."""
    import pyarrow as pa

    kinds: dict[str, Any] = {}
    for i in range(len(source)):
        for name, value in source[i].sources.items():
            first = value[0] if isinstance(value, tuple) else value
            kind = pa.string() if isinstance(first, str) else pa.binary()
            known = kinds.get(name)
            if isinstance(value, tuple) or (known is not None and pa.types.is_list(known)):
                kind = pa.list_(kind)
            kinds[name] = kind
    return kinds


def _row(source: Any, index: int, kinds: dict[str, Any], rejects: Rejects) -> dict[str, Any]:
    import pyarrow as pa

    record = embedded(source[index], source.name, index + 1, rejects)
    row, images = record_to_mapping(record)

    def unpack(value):
        if isinstance(value, list):
            return [unpack(part) for part in value]
        return images[value["blob"]] if isinstance(value, dict) else value

    sources = {name: unpack(value) for name, value in row["sources"].items()}
    for name, value in sources.items():
        if pa.types.is_list(kinds[name]) and not isinstance(value, list):
            sources[name] = [value]
    row["sources"] = sources
    for key in ("attributes", "alternatives", "evidence"):
        row[key] = list(row.get(key, {}).items())
    return row
