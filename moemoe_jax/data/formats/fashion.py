"""The "Fashion Product Images" folder of Kaggle: `styles.csv` and `images/<id>.jpg`.

The public file has titles with unquoted commas, which give a line too many columns; the title is
the last column, so the surplus belongs to it. Cells that are empty or "NA" mean "not known".
"""

import csv
import functools
import os
from pathlib import Path

from moemoe_jax.data.formats.lines import LineSource
from moemoe_jax.data.records import Record, RecordError, parse_record
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.errors import UserError

TABLE = "styles.csv"
TITLE = "productDisplayName"
# "masterCategory" and "year" are there as well: the one follows from subCategory, the other is not
# to be seen on a product.
ATTRIBUTES = ("gender", "subCategory", "articleType", "baseColour", "season", "usage")


def parse_line(line: str, file: Path, *, header: tuple[str, ...], images: frozenset[str]) -> Record:
    """A record from one line of `styles.csv`.

    Args:
      line: the line.
      file: where `styles.csv` is.
      header: the names of its columns, the title last.
      images: the names of the files in `images/`; a record whose image is not there has none.

    Raises:
      RecordError: not CSV, too few columns, no id.
    """
    try:
        cells = _cells(line)
    except csv.Error as error:
        raise RecordError(f"not CSV: {error}") from error
    if len(cells) < len(header):
        raise RecordError(f"too few columns: {len(cells)} of {len(header)}")
    last = len(header) - 1
    row = dict(zip(header, [*cells[:last], ",".join(cells[last:])], strict=True))
    row = {name: cell.strip() for name, cell in row.items()}
    image = _image_name(row["id"])
    return parse_record(
        {
            "id": row["id"],
            "sources": {
                "title": row[TITLE],
                "image": f"images/{image}" if image in images else None,
            },
            "attributes": {name: row[name] for name in ATTRIBUTES if row[name] not in ("", "NA")},
        },
        file.parent,
    )


def _cells(line: str) -> list[str]:
    return next(csv.reader([line.rstrip("\r\n")]))


def _image_name(record_id: str) -> str:
    return f"{record_id}.jpg"


def _remark(record: Record, file: Path) -> str | None:
    if "image" in record.sources:
        return None
    return f"missing image: images/{_image_name(record.id)}"


def _header(table: Path) -> tuple[str, ...]:
    with table.open("rb") as lines:
        first = lines.readline().decode("utf-8", "replace").removeprefix("\ufeff")
    try:
        header = tuple(name.strip() for name in _cells(first))
    except csv.Error as error:
        raise UserError(f"{table} line 1 is not CSV: {error}; save the file again") from None
    for name in ("id", *ATTRIBUTES, TITLE):
        if name not in header:
            raise UserError(f"{table} line 1 has no column {name!r}; its first line must name it")
    if header[-1] != TITLE:
        raise UserError(f"{table} line 1: {TITLE!r} must be the last column; reorder the columns")
    return header


def _table(path: Path) -> Path:
    """Where `styles.csv` is: `path` itself, or in that folder."""
    table = path if path.is_file() else path / TABLE
    if table.is_file():
        return table
    # An archive unpacks to folders in folders, of which one is easily named for another.
    near = (path.parent, *sorted(path.glob("*/")), *sorted(path.glob("*/*/")))
    found = [folder for folder in near if (folder / TABLE).is_file()]
    remedy = f"write fashion:{found[0]}" if found else f"name the folder that holds {TABLE}"
    raise UserError(f"{path} holds no {TABLE}, the table of 'Fashion Product Images'; {remedy}")


def detect(path: Path) -> bool:
    """A folder with `styles.csv`, or that file."""
    return (path / TABLE).is_file() or (path.name == TABLE and path.is_file())


def splits(path: Path) -> tuple[str, ...]:
    """It comes in one piece."""
    return ()


def open_records(path: Path, split: str | None, rejects: Rejects) -> LineSource:
    """Opens the folder (or its `styles.csv`).

    Raises:
      UserError: no `styles.csv` there, or a column of it is missing.
    """
    table = _table(path)
    folder = table.parent / "images"
    images = frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()
    parse = functools.partial(parse_line, header=_header(table), images=images)
    return LineSource(str(path), [table], parse, rejects, header_lines=1, remark=_remark)
