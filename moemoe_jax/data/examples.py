"""What a record shows and asks: its fields as one text, its images, the texts to learn pieces from.

Shapes: K source tokens, S image side.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import os
from pathlib import Path

import numpy as np

from moemoe_jax.data.config import DataConfig, SourceConfig
from moemoe_jax.data.questions import Example, examples_of
from moemoe_jax.data.records import Record
from moemoe_jax.data.sources import RecordSource
from moemoe_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Product:
    """One row of a batch before it is padded.

    Attributes:
      examples: the questions asked in this row, at most Q.
      sources: name -> int32 [N <= K] token ids with `</s>`, or uint8 [S, S, 3]; what the product
        lacks is not in it.
    """

    examples: tuple[Example, ...]
    sources: dict[str, np.ndarray]


def field_text(record: Record, field: str) -> str:
    """Returns the text of one field of a record ("" where it is missing)."""
    if field == "marketplace":
        return record.marketplace or ""
    if field == "product_type":
        return record.product_type or ""
    return record.text(field) or ""


def context_text(record: Record, fields: Sequence[str]) -> str:
    """Joins fields to one text: "product type: shirt title: Blue shirt".

    A field's name goes in front of it only where there are several fields to tell apart.
    """
    parts = []
    for field in fields:
        text = field_text(record, field).strip()
        if text:
            label = f"{field.replace('_', ' ')}: " if len(fields) > 1 else ""
            parts.append(label + text)
    return " ".join(parts)


def source_images(record: Record, fields: Sequence[str]) -> list[Path | bytes]:
    """Lists all images of some fields of a record, in order."""
    images = []
    for field in fields:
        value = record.sources.get(field)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, bytes | os.PathLike):
                images.append(one)
    return images


def has_any_source(record: Record, sources: Sequence[SourceConfig]) -> bool:
    """Whether the record has something to look at, as far as can be told without decoding it."""
    return any(
        source_images(record, source.fields)
        if source.kind == "image"
        else context_text(record, source.fields)
        for source in sources
    )


def check_image_size(source: RecordSource, config: DataConfig) -> None:
    """Refuses records whose images would have to be blown up again.

    Raises:
      UserError: they were made smaller than `config.image_size` when they were prepared.
    """
    stored = getattr(source, "image_size", 0)
    looks = any(one.kind == "image" for one in config.sources)
    if looks and 0 < stored < config.image_size:
        raise UserError(
            f"{source.name} was prepared with --image_size={stored}, but data.image_size is "
            f"{config.image_size}: prepare it again with at least that, or set "
            f"data.image_size={stored}"
        )


def corpus(source: RecordSource, config: DataConfig, limit: int = 20_000) -> Iterator[str]:
    """Yields the texts to train a tokenizer on: contexts, questions, answers of the records.

    Args:
      source: records; above `limit` of them, that many are taken at even distances.
      config: which fields, questions and attributes.
      limit: the most records.
    """
    count = min(limit, len(source))
    for position in range(count):
        record = source[position * len(source) // count]
        for one in config.sources:
            if one.kind == "text":
                yield context_text(record, one.fields)
        for example in examples_of(record, config):
            yield example.question
            yield from (config.no_answer_text,) if example.null else example.answers or ()
