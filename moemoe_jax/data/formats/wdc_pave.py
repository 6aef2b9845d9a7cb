"""WDC-PAVE (University of Mannheim): offers with attribute values or "n/a", as JSON Lines.

`{"id", "category", "input_title", "input_description", "target_scores": {attribute: {value:
{"pid", "score"}} | {"n/a": 1}}}`. "n/a" means that the offer does not tell: known to have no
answer. Of several values the first is the answer, and all are acceptable.
"""

from pathlib import Path
from typing import Any

from moemoe_jax.data.formats import files, jsonl
from moemoe_jax.data.formats.lines import LineSource
from moemoe_jax.data.records import Record, RecordError, parse_record
from moemoe_jax.data.rejects import Rejects

_NONE = "n/a"


def to_mapping(offer: dict[str, Any]) -> dict[str, Any]:
    """An offer in the keys of the record format.

    Raises:
      RecordError: no "target_scores", or not in their form.
    """
    scores = offer.get("target_scores")
    if not isinstance(scores, dict):
        raise RecordError("no 'target_scores': not an offer of WDC-PAVE")
    attributes: dict[str, list[str] | None] = {}
    for name, values in scores.items():
        if not isinstance(values, dict) or not values:
            raise RecordError(f"wrong type: target_scores of {name!r} is not an object of values")
        attributes[name] = [value for value in values if value != _NONE] or None
    return {
        "id": offer.get("id"),
        "product_type": offer.get("category"),
        "sources": {
            "title": offer.get("input_title", offer.get("title")),
            "description": offer.get("input_description", offer.get("description")),
        },
        "attributes": attributes,
    }


def parse_line(line: str, file: Path) -> Record:
    """A record from one offer."""
    return parse_record(to_mapping(jsonl.load_json(line)), file.parent)


def detect(path: Path) -> bool:
    """JSON Lines whose first object has "target_scores"."""
    return "target_scores" in jsonl.first_keys(path)


def splits(path: Path) -> tuple[str, ...]:
    """The splits that the file names tell."""
    return files.split_names(path, jsonl.SUFFIXES)


read_ids = jsonl.read_ids


def open_records(path: Path, split: str | None, rejects: Rejects) -> LineSource:
    """Opens a file, or the folder's files of one split."""
    return LineSource(str(path), files.files_of(path, jsonl.SUFFIXES, split), parse_line, rejects)
