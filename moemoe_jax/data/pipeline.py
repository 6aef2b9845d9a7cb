"""Batches of products and questions, in an order that depends on nothing but the seed.

Step t of training takes rows t * P to (t + 1) * P of an endless stream: the products in a new order
each epoch (`data.buckets`). Everything random about a row (its questions, its augmentation) is
drawn from a generator keyed by (seed, row number). So a batch is a pure function of (seed, step):
it does not depend on the number of threads, a run continues at any step at no cost, and each of
several processes makes its own rows of the same batch. The table of distinct questions is of the
whole batch: every process makes all of it, which takes the choice of every row's questions but none
of their products.

Where a batch could ask more questions than its table has rows (`data.distinct_questions`), it asks
only some of them, drawn by (seed, step) from all that its products have. A question of a product is
then still as likely to be asked as any other of it, but products of one batch are asked more of the
same.

Shapes: N products that can be used, P products a batch, Q questions a product, U rows of the
question table.
"""

from collections.abc import Callable, Iterator, Sequence

from absl import logging
import grain
import numpy as np

from moemoe_jax.data.batching import Batch, collate, distinct_questions, question_rows
from moemoe_jax.data.buckets import BatchOrder, fits, shortened
from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.examples import Product
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.questions import Example
from moemoe_jax.data.reader import ProductReader
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import RecordSource
from moemoe_jax.data.survey import survey
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.errors import UserError

Meta = list[tuple[Example, ...]]


def _read_options(config: DataConfig) -> grain.ReadOptions:
    buffer = config.prefetch if config.threads else 0
    return grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=buffer)


class TrainBatches:
    """The endless iterator of training batches; see `train_batches`.

    Attributes:
      products: N.
      questions: how many questions those products have.
      steps_per_epoch: steps in which every product comes once, not rounded.
      attributes: how often each attribute has each value ("" where there is known to be none).
      rows: U.
      source: the records.
      rejects, notes: what could not be used, and what was not used whole.
      needless: record number -> whether the product's sources need not be read, as who takes the
        batch has what they give. Such a product comes without any.
    """

    def __init__(
        self, reader: ProductReader, seed: int, start_step: int, mine: Sequence[int] | None
    ):
        config = reader.config
        self._lengths = config.text_lengths
        found = survey(
            reader,
            config.products_per_batch * config.questions_per_product,
            measure=len(self._lengths) > 1,
        )
        self.products = len(found.indices)
        self.questions = int(found.counts.sum())
        self.steps_per_epoch = self.products / config.products_per_batch
        self.attributes = found.attributes
        self.rows = config.distinct_questions or question_rows(config, len(found.questions))
        self.source, self.rejects, self.notes = reader.source, reader.rejects, reader.notes
        self.needless: Callable[[int], bool] = lambda record: False
        self._reader, self._seed = reader, seed
        self._mine = _mine(config, mine)
        self._indices = found.indices
        self._buckets = np.searchsorted(self._lengths, found.lengths)
        self._order = BatchOrder(self._buckets, config.products_per_batch, seed)
        steps = grain.MapDataset.range(len(self._order)).map(self._make)
        self._iterator = iter(steps.to_iter_dataset(_read_options(config)))
        self._step = 0
        self._seek(start_step)

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns where the iterator stands, as JSON can hold it; the same on every process."""
        return {
            "step": self._step,
            "seed": self._seed,
            "products": self.products,
            "products_per_batch": self._reader.config.products_per_batch,
        }

    def set_state(self, state: dict[str, int]) -> None:
        """Continues behind the last batch that was taken when `state` was got.

        Raises:
          UserError: `state` is not what `get_state` returns.
        """
        mine = self.get_state()
        if not isinstance(state, dict) or set(state) != set(mine):
            raise UserError(f"not the state of a training iterator: {state!r}")
        changed = [k for k in mine if k != "step" and state[k] != mine[k]]
        if changed:
            logging.warning(
                "The data order differs from the one before, as these changed: %s",
                ", ".join(f"{name} {state[name]} -> {mine[name]}" for name in changed),
            )
        self._seek(state["step"])

    def records(self, step: int) -> np.ndarray:
        """The numbers of the records in the batch of a step, int64 [P]: of all processes' rows."""
        return self._indices[self._order[step]]

    def close(self) -> None:
        """Stops the threads; batches made ahead are dropped."""
        self._iterator.close()

    def _seek(self, step: int) -> None:
        if step < 0:
            raise UserError(f"training cannot start at step {step}: give 0 or more")
        self._iterator.set_state({"next_index": step})
        self._step = step

    def _make(self, step: int) -> Batch:
        drawn = self._order[step]
        first, indices = step * len(drawn), self._indices[drawn]
        length = self._lengths[self._buckets[drawn].max()]
        asked = self._shared([self._reader.examples(int(index))[1] for index in indices], step)
        drawn = [self._draw(examples, first + row) for row, examples in enumerate(asked)]
        products = [self._product(int(indices[row]), *drawn[row], length) for row in self._mine]
        questions = distinct_questions(examples for examples, _ in drawn)
        return collate(products, questions, self._reader, self.rows, length)

    def _shared(self, asked: Meta, step: int) -> Meta:
        """What is left of the questions of a batch's products: all that the table has room for."""
        config = self._reader.config
        if self.rows >= config.products_per_batch * config.questions_per_product:
            return asked
        questions = distinct_questions(asked)
        if len(questions) <= self.rows:
            return asked
        rng = np.random.default_rng((self._seed % 2**64, step))
        some = {questions[i] for i in rng.permutation(len(questions))[: self.rows]}
        return [tuple(e for e in examples if e.question in some) for examples in asked]

    def _draw(
        self, examples: tuple[Example, ...], row: int
    ) -> tuple[tuple[Example, ...], np.random.Generator]:
        """The questions to ask in a row, and the generator for what else is random about it."""
        count = self._reader.config.questions_per_product
        key = np.array([self._seed % 2**64, row], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        if len(examples) > count:
            examples = tuple(examples[i] for i in rng.permutation(len(examples))[:count])
        return examples, rng

    def _product(
        self, index: int, examples: tuple[Example, ...], rng: np.random.Generator, length: int
    ) -> Product:
        if self.needless(index):
            return Product(examples, {})
        product = self._reader.read(index, lambda _: examples, rng=rng)
        if not fits(product, length):
            # Some tokenizers make more of a text without a word than of all of it.
            self.notes.once("text cut off at its batch's length", index)
            product = shortened(product, length)
        return product


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
        self._mine = _mine(config, mine)
        # A product with more than Q questions takes several rows, one behind the other.
        chunks = -(-found.counts // chunk)
        self._record = np.repeat(found.indices, chunks)
        starts = np.repeat(np.cumsum(chunks) - chunks, chunks)
        self._chunk = np.arange(len(self._record)) - starts

    def __len__(self) -> int:
        size = self._reader.config.products_per_batch
        return (len(self._record) + size - 1) // size

    def __iter__(self) -> Iterator[tuple[Batch, Meta]]:
        steps = grain.MapDataset.range(len(self)).map(self._make)
        iterator = iter(steps.to_iter_dataset(_read_options(self._reader.config)))
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


def _mine(config: DataConfig, rows: Sequence[int] | None) -> Sequence[int]:
    return range(config.products_per_batch) if rows is None else rows


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


def train_batches(
    source: RecordSource,
    tokenizer: Tokenizer,
    config: DataConfig,
    seed: int,
    start_step: int = 0,
    *,
    rows: Sequence[int] | None = None,
    rejects: Rejects | None = None,
    notes: Notes | None = None,
) -> TrainBatches:
    """Makes the endless iterator of training batches.

    A product comes once an epoch, with Q of its questions drawn at random. Products without a
    question whose answer is known are left out and counted.

    Args:
      source: the records.
      tokenizer: for all texts.
      config: what a batch looks like.
      seed: decides order, questions and augmentation.
      start_step: the first step; the same as taking and dropping that many batches.
      rows: the rows of each batch that this process makes (`parallel.sharding.local_rows`), all of
        them by default. Its arrays hold these, but for the table of questions, which is the whole
        batch's.
      rejects: where rejects go; by default a new list, kept as an attribute of the iterator.
      notes: what else is counted; likewise.

    Returns:
      An iterator of batches (see `batching.collate` for shapes) with `get_state`, `set_state` and
      `close`.

    Raises:
      UserError: nothing to train on, or too many rejects.
    """
    counters = _counters(config, rejects, notes)
    reader = ProductReader(source, tokenizer, config, labelled_only=True, **counters)
    return TrainBatches(reader, seed, start_step, rows)


def eval_batches(
    source: RecordSource,
    tokenizer: Tokenizer,
    config: DataConfig,
    remove_sources: Sequence[str] = (),
    ask: Sequence[str] = (),
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
      ask: attributes to ask of every record, known or not.
      one_table: gives every batch the same table, of all questions that there are, unless these are
        more than P * Q: what a table gives can then be kept from batch to batch.
      rows: as in `train_batches`.
      rejects: as in `train_batches`.
      notes: as in `train_batches`.

    Returns:
      An iterable with a length, of (batch, meta). `meta` lists, for each row of all processes, the
      examples of its columns. Rows that fill up the last batch have none, nor have products none of
      whose sources can be read (which are rejects); of the latter only the process that makes the
      row knows, so for another's rows `question_valid` has the last word.

    Raises:
      UserError: nothing to ask, an unknown source to remove, or as in `train_batches`.
    """
    counters = _counters(config, rejects, notes)
    reader = ProductReader(source, tokenizer, config, labelled_only=False, ask=ask, **counters)
    return EvalBatches(reader, remove_sources, rows, one_table)


def _counters(
    config: DataConfig, rejects: Rejects | None, notes: Notes | None
) -> dict[str, Rejects | Notes]:
    rejects = Rejects(max_fraction=config.max_reject_fraction) if rejects is None else rejects
    return {"rejects": rejects, "notes": Notes() if notes is None else notes}
