"""One pass over the records before the first batch: what can be used, and what is asked.

It parses every record once and opens no image file, so it costs about as much as reading the data.

Shapes: N records that can be used.
"""

from collections import Counter, defaultdict
import dataclasses

from absl import logging
import numpy as np

from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.examples import has_any_source
from moemoe_jax.data.lazy import LazyRecord
from moemoe_jax.data.reader import ProductReader
from moemoe_jax.data.records import Record, is_image_source
from moemoe_jax.errors import UserError
from moemoe_jax.files import shown


@dataclasses.dataclass(frozen=True)
class Survey:
    """What one pass over the records found.

    Attributes:
      indices: int64 [N], the records with something to look at and something to ask.
      counts: int64 [N], how many questions each has.
      lengths: int64 [N], the most tokens that a text of each can have; zeros if not measured.
      longest_answer: tokens of the longest answer to learn, at most L.
      full_answers: the different answers that fill all L: cut off there, or just as long.
      questions: the different questions, in the order in which they first occur; where there are
        more than a limit, more than that many of them.
      attributes: how often each attribute has each value ("" where there is known to be none).
    """

    indices: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    longest_answer: int
    full_answers: tuple[str, ...]
    questions: tuple[str, ...]
    attributes: dict[str, Counter[str]]


def survey(reader: ProductReader, limit: int, measure: bool = False) -> Survey:
    """Looks at every record once.

    Args:
      reader: the records; its rejects and notes get what is left out.
      limit: stop gathering different questions beyond this.
      measure: tokenises all texts, to find out how long they are.

    Raises:
      UserError: no question is left, or too many records are rejected.
    """
    with reader.rejects.found_by_all():
        return _survey(reader, limit, measure)


def _survey(reader: ProductReader, limit: int, measure: bool) -> Survey:
    config, source = reader.config, reader.source
    if not len(source):
        raise UserError(
            f"{source.name} has no record: of few records a split may get none; raise its share "
            "(data.val_fraction, data.test_fraction), or set that to 0 to do without"
        )
    indices, counts, lengths, known, fields = [], [], [], set(), set()
    longest_answer, full_answers = 0, set()
    questions: dict[str, None] = {}
    attributes: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(len(source)):
        record = source[index]
        known.update(record.attributes)
        fields.update(record.sources)
        if not has_any_source(record, config.sources):
            reader.reject(record, index, _without_source(record, config))
            continue
        _, examples = reader.examples(index, record, reader.notes)
        if not examples:
            reader.notes.add("products without a question left out")
            continue
        reader.images.prime(LazyRecord(source, index, record))
        indices.append(index)
        counts.append(len(examples))
        lengths.append(reader.longest_text(index, record) if measure else 0)
        for example in examples:
            tokens = len(reader.short_texts.answer_ids(example))
            longest_answer = max(longest_answer, tokens)
            if tokens == config.answer_length:
                full_answers.add(reader.short_texts.answer(example))
            if example.attribute is not None:
                attributes[example.attribute][(example.answers or ("",))[0]] += 1
        if len(questions) <= limit:
            questions.update(dict.fromkeys(example.question for example in examples))
    if not indices:
        raise UserError(
            f"none of the {len(source)} records has a question to ask: check the data and "
            f"data.attributes (the records have {', '.join(sorted(known)[:20]) or 'none'})"
        )
    _warn_of_unread(config, fields)
    known.update(reader.ask)
    for setting in ("attributes", "question_templates"):
        missing = [name for name in getattr(config, setting) if name not in known]
        if missing:
            logging.warning("data.%s that no record has: %s", setting, ", ".join(missing))
    return Survey(
        np.asarray(indices),
        np.asarray(counts),
        np.asarray(lengths),
        longest_answer,
        tuple(sorted(full_answers)),
        tuple(questions),
        dict(attributes),
    )


def _warn_of_unread(config: DataConfig, found: set[str]) -> None:
    """Warns of what no source reads: first of what a source may want that no record has."""
    unread = found.difference(*(source.fields for source in config.sources))
    for source in config.sources:
        fields = [name for name in source.fields if name not in ("product_type", "marketplace")]
        image = source.kind == "image"
        others = {name for name in unread if is_image_source(name) == image}
        if fields and others and not found.intersection(fields):
            logging.warning(
                "no record has source %r (%s), but others that data.sources.%s.fields may name: %s",
                source.name,
                ", ".join(fields),
                source.name,
                ", ".join(map(shown, sorted(others))),
            )
            unread -= others
    if unread:
        logging.warning(
            "the records have sources that nobody reads: %s; data.sources.NAME.fields names those "
            "that are read (%s)",
            ", ".join(map(shown, sorted(unread))),
            "; ".join(f"{source.name}: {', '.join(source.fields)}" for source in config.sources),
        )


def _without_source(record: Record, config: DataConfig) -> str:
    """Why a record has nothing to look at: what is read, and what it has in place of it."""
    fields = ", ".join(field for source in config.sources for field in source.fields)
    others = ", ".join(map(shown, sorted(record.sources))) or "none"
    return f"no source: data.sources reads {fields}; the record has {others}"
