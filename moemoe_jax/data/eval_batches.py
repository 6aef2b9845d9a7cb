"""Evaluation batches: every question of every record exactly once, in order.

Shapes: N products that can be used, P products a batch, Q questions a product, U rows of the
question table.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from moemoe_jax.data.batching import Batch, collate, distinct_questions, question_rows
from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.examples import Product
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.pipeline import counters_or_new, in_order, rows_made
from moemoe_jax.data.questions import Example
from moemoe_jax.data.reader import ProductReader
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import RecordSource
from moemoe_jax.data.survey import survey
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.errors import UserError

Meta = list[tuple[Example, ...]]


class EvalBatches:
    """Batches with their examples, from the first to the last, as often as it is iterated.

    Attributes:
      products: N.
      questions: how many questions are asked in all.
      rows: U.
      rejects, notes: what could not be used, and what was not used whole.
    """

    def __init__(
        self,
        reader: ProductReader,
        remove_sources: Sequence[str],
        mine: Sequence[int] | None,
        one_table: bool,
    ):
        config = reader.config
        check_removal(config, remove_sources)
        chunk = config.questions_per_product
        most = config.products_per_batch * chunk
        found = survey(reader, most)
        self.products = len(found.indices)
        self.questions = int(found.counts.sum())
        self.rows = question_rows(config, len(found.questions))
        self._table = found.questions if one_table and len(found.questions) <= most else ()
        self.rejects, self.notes = reader.rejects, reader.notes
        self._reader, self._remove = reader, tuple(remove_sources)
        self._mine = rows_made(config, mine)
        # A product with more than Q questions takes several rows, one behind the other.
        chunks = -(-found.counts // chunk)
        self._record = np.repeat(found.indices, chunks)
        starts = np.repeat(np.cumsum(chunks) - chunks, chunks)
        self._chunk = np.arange(len(self._record)) - starts

    def __len__(self) -> int:
        size = self._reader.config.products_per_batch
        return (len(self._record) + size - 1) // size

    def __iter__(self) -> Iterator[tuple[Batch, Meta]]:
        iterator = in_order(self._make, len(self), self._reader.config)
        try:
            yield from iterator
        finally:
            iterator.close()

    def _make(self, step: int) -> tuple[Batch, Meta]:
        size = self._reader.config.products_per_batch
        first = step * size
        asked = [self._examples(first + row) for row in range(size)]
        products = [self._product(first + row, asked[row]) for row in self._mine]
        meta = list(asked)
        for row, product in zip(self._mine, products, strict=True):
            meta[row] = product.examples
        questions = self._table or distinct_questions(asked)
        return collate(products, questions, self._reader, self.rows), meta

    def _examples(self, row: int) -> tuple[Example, ...]:
        if row >= len(self._record):
            return ()
        size = self._reader.config.questions_per_product
        start = int(self._chunk[row]) * size
        return self._reader.examples(int(self._record[row]))[1][start : start + size]

    def _product(self, row: int, examples: tuple[Example, ...]) -> Product:
        if not examples:
            return Product((), {})
        return self._reader.read(int(self._record[row]), lambda _: examples, self._remove)


def check_removal(config: DataConfig, remove_sources: Sequence[str]) -> None:
    """Refuses to remove what is no source, or all of them.

    Raises:
      UserError: naming the sources.
    """
    names = [source.name for source in config.sources]
    unknown = [name for name in remove_sources if name not in names]
    if unknown:
        raise UserError(f"cannot remove source {unknown[0]!r}: the sources are {', '.join(names)}")
    if set(names) <= set(remove_sources):
        raise UserError(f"removing {', '.join(names)} leaves no source: keep at least one")


def eval_batches(
    source: RecordSource,
    tokenizer: Tokenizer,
    config: DataConfig,
    remove_sources: Sequence[str] = (),
    *,
    one_table: bool = False,
    rows: Sequence[int] | None = None,
    rejects: Rejects | None = None,
    notes: Notes | None = None,
) -> EvalBatches:
    """Makes batches that hold every question of every record exactly once, in order.

    Answers are hidden as `hide_answer_fraction` says; nothing is augmented.

    Args:
      source: the records.
      tokenizer: for all texts.
      config: what a batch looks like; Q is the number of questions a row.
      remove_sources: names of sources to take away from every product. A product that has no other
        keeps its questions, with `source_valid` False throughout.
      one_table: gives every batch the same table, of all questions that there are, unless these are
        more than P * Q: what a table gives can then be kept from batch to batch.
      rows: as in `train_batches.train_batches`.
      rejects: likewise.
      notes: what else is counted; by default in a new list.

    Returns:
      An iterable with a length, of (batch, meta). `meta` lists, for each row of all processes, the
      examples of its columns. Rows that fill up the last batch have none, nor have products none of
      whose sources can be read (which are rejects); of the latter only the process that makes the
      row knows, so for another's rows `question_valid` has the last word.

    Raises:
      UserError: nothing to ask, an unknown source to remove, or too many rejects.
    """
    counters = counters_or_new(config, rejects, notes)
    reader = ProductReader(source, tokenizer, config, labelled_only=False, **counters)
    return EvalBatches(reader, remove_sources, rows, one_table)
