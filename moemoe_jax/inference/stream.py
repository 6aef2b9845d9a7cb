"""Records of any number to batches, a window at a time: what is in memory does not grow with them.

A window is read while the one before is answered. Its rows are sorted by length, so that a batch
holds texts of about one length, and go back into their order when they are answered. The questions
that every record is asked come first in every batch's table, so that batches have the same one,
whose encodings can be kept (`inference.questions`). What a batch holds depends on nothing but its
window, so that answering a window again gives the same answers.

Shapes: P products, Q questions per product, U distinct questions, K tokens of a text.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
import dataclasses
from typing import TypeVar

import numpy as np

from moemoe_jax.data.batching import Batch, collate, distinct_questions
from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.examples import Product
from moemoe_jax.data.questions import Example, question_text
from moemoe_jax.data.reader import ProductReader
from moemoe_jax.evaluation.answers import ScoredAnswer
from moemoe_jax.files import shown
from moemoe_jax.inference.buckets import batch_sizes, question_tables, smallest, text_lengths
from moemoe_jax.inference.config import AnswerConfig
from moemoe_jax.inference.questions import questions_compete
from moemoe_jax.models.config import MoEMoEConfig

_MOST_QUESTIONS = 64  # of a row, by default
_CACHE_MIB = 16  # for questions, which repeat; texts and images do not

T = TypeVar("T")
Shape = tuple[int, int, int]


def stream_data(config: DataConfig, answer: AnswerConfig, ask: int) -> DataConfig:
    """The settings of data with which a stream is read.

    Args:
      config: those of the run.
      answer: how questions are answered.
      ask: how many attributes every record is asked: they fit in one row, so that a product is
        encoded once for all of them.
    """
    alone = config.context_includes_question  # then every question has a text of its own
    return dataclasses.replace(
        config,
        products_per_batch=answer.products_per_batch,
        questions_per_product=1 if alone else max(1, min(ask, _MOST_QUESTIONS)),
        cache_images_mib=config.cache_images_mib if alone else 0,
        cache_text_mib=config.cache_text_mib if alone else _CACHE_MIB,
    )


def ahead(function: Callable[[int], T], items: Iterable[int], threads: int, depth: int):
    """Yields `function(item)` in order, made in threads up to `depth` items ahead of the caller."""
    pool, made = ThreadPoolExecutor(max(threads, 1)), deque()
    try:
        for item in items:
            made.append(pool.submit(function, item))
            if len(made) > depth:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclasses.dataclass
class Window:
    """The rows of some records in a row, and their answers as they come.

    Attributes:
      number: which window, from 0.
      rows: what is asked; None once it is in a batch.
      answers: of each row.
      left: how many batches are not answered yet.
    """

    number: int
    rows: list[Product | None]
    answers: list[list[ScoredAnswer]]
    left: int = 0


@dataclasses.dataclass(frozen=True)
class Work:
    """A batch of a window: the numbers of its rows there, its arrays and its examples."""

    window: Window
    rows: np.ndarray
    batch: Batch
    meta: list[tuple[Example, ...]]


class Stream:
    """Windows of batches; iterate `works(numbers)`.

    Args:
      reader: of the records, with `stream_data`'s settings.
      model: what the model is made of: decides the lengths.
      answer: window, sizes and lengths.
      devices: that share a batch.
      trained: the attributes that the model was trained on, and their questions; where there are
        any, a record's own questions about others are noted.

    Attributes:
      windows: how many there are.
      notes: the reader's, each of its window.
      shapes: (P, K, U) of the batches so far; each is a program, beside one for each U that encodes
        a table of questions.
      most_shapes: how many there can be at most.
    """

    def __init__(
        self,
        reader: ProductReader,
        model: MoEMoEConfig,
        answer: AnswerConfig,
        devices: int = 1,
        trained: Collection[str] = (),
    ):
        config = reader.config
        self._trained = trained
        self._reader, self._size = reader, answer.window
        self.notes = reader.notes
        self.windows = -(-len(reader.source) // answer.window)
        self._sizes = batch_sizes(config.products_per_batch, devices)
        self._lengths = text_lengths(model, answer.lengths)
        most = config.products_per_batch * config.questions_per_product
        self._tables = question_tables(most, len(reader.ask))
        self._compete = questions_compete(model)
        self._always = [
            question_text(name, config.question_template, config.question_templates)
            for name in reader.ask
        ]
        self.shapes: set[Shape] = set()
        self.most_shapes = len(self._sizes) * len(self._lengths) * len(self._tables)

    def works(self, numbers: Iterable[int]) -> Iterator[Work | Window]:
        """Yields the batches of the windows of these numbers; a window without any, by itself."""
        for window in self._read(numbers):
            plans = list(self._plan(window.rows))
            window.left = len(plans)
            if not plans:
                yield window
            for chosen in plans:
                yield self._make(window, chosen)

    def _read(self, numbers: Iterable[int]) -> Iterator[Window]:
        count = len(self._reader.source)
        wanted = [(n, range(n * self._size, min((n + 1) * self._size, count))) for n in numbers]
        indices = (index for _, records in wanted for index in records)
        threads = self._reader.config.threads
        read = ahead(self._rows_of, indices, threads, self._size if threads else 0)
        try:
            for number, records in wanted:
                rows = [row for _ in records for row in next(read)]
                yield Window(number, rows, [[] for _ in rows])
        finally:
            read.close()

    def _rows_of(self, index: int) -> list[Product]:
        """The rows of one record: one, or more where it is asked more than Q questions."""
        reader, size = self._reader, self._reader.config.questions_per_product
        with self.notes.within(index // self._size):
            _, examples = reader.examples(index, notes=self.notes)
            if not examples:
                self.notes.add("products without a question left out")
                return []
            self._note_untrained(examples)
            if reader.config.context_includes_question:
                found = [reader.read(index, lambda _, e=e: (e,)) for e in examples]
                return [product for product in found if product.examples]
            product = reader.read(index, lambda all_of_them: all_of_them)
        return [
            Product(product.examples[start : start + size], product.sources)
            for start in range(0, len(product.examples), size)
        ]

    def _note_untrained(self, examples: Iterable[Example]) -> None:
        """Notes the questions of a record's own that no attribute of the training has."""
        known = {*self._trained, *self._reader.ask}
        for example in examples if self._trained else ():
            if example.attribute not in known and example.question not in known:
                what = "questions in words, beside the attributes that the model was trained on"
                self.notes.add(what, example=shown(example.question))

    def _plan(self, rows: list[Product]) -> Iterator[np.ndarray]:
        """Which rows make a batch: neighbours by length; what is left over are the shortest."""
        size, order = self._sizes[-1], np.arange(len(rows))
        if len(self._lengths) > 1:
            order = np.argsort([_tokens(row) for row in rows], kind="stable")
        rest = len(rows) % size
        if rest:
            yield order[:rest]
        for start in range(rest, len(rows), size):
            yield order[start : start + size]

    def _make(self, window: Window, chosen: np.ndarray) -> Work:
        rows = [window.rows[i] for i in chosen]
        for i in chosen:
            window.rows[i] = None
        size = smallest(self._sizes, len(rows))
        length = smallest(self._lengths, max(map(_tokens, rows)))
        filled = [*rows, *[Product((), {})] * (size - len(rows))]
        examples = [row.examples for row in filled]
        questions = self._questions(examples)
        table = smallest(self._tables, len(questions))
        self.shapes.add((size, length, table))
        with self.notes.within(window.number):
            batch = collate(filled, questions, self._reader, table, length)
        del batch["answer_ids"]
        return Work(window, chosen, batch, examples)

    def _questions(self, examples: list[tuple[Example, ...]]) -> list[str]:
        """The table of a batch: the same for as many batches as may be.

        First come the questions that every record is asked, whether or not these rows are, if there
        is room for them; then all others in the order of the alphabet. Where questions compete,
        those of the batch alone, as they come.
        """
        asked = distinct_questions(examples)
        if self._compete:
            return asked
        table = list(dict.fromkeys((*self._always, *sorted(asked))))
        return table if len(table) <= self._tables[-1] else sorted(asked)


def _tokens(row: Product) -> int:
    """The tokens of a row's longest text."""
    return max((len(value) for value in row.sources.values() if value.ndim == 1), default=1)


def answer_windows(
    works: Iterable[Work | Window], start: Callable, collect: Callable
) -> Iterator[Window]:
    """Answers batches, one ahead of the host, and yields each window once it is complete.

    Args:
      works: from `Stream.works`.
      start: sends a batch to the device and does not wait, as `Predictor.start`.
      collect: yields the answers of what `start` returned and of its examples.
    """
    waiting = None

    def finish(work: Work, results) -> Iterator[Window]:
        answers = collect(results, work.meta)
        for row, examples in zip(work.rows, work.meta, strict=False):  # padding comes last
            work.window.answers[row] = [next(answers) for _ in examples]
        work.window.left -= 1
        if not work.window.left:
            yield work.window

    for work in works:
        if isinstance(work, Window):
            yield work
            continue
        started = work, start(work.batch)
        if waiting is not None:
            yield from finish(*waiting)
        waiting = started
    if waiting is not None:
        yield from finish(*waiting)
