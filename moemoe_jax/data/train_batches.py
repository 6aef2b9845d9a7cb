"""Training batches of products and questions, in an order that depends on nothing but the seed.

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

Answers are padded to the longest of all that are learnt, where that is less than L: the decoder is
causal, so positions behind it would change nothing.

Shapes: N products that can be used, P products a batch, Q questions a product, U rows of the
question table, L answer tokens.
"""

from collections.abc import Callable, Sequence

from absl import logging
import numpy as np

from moemoe_jax.data.batching import Batch, collate, distinct_questions, question_rows
from moemoe_jax.data.buckets import BatchOrder, fits, shortened
from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.examples import Product
from moemoe_jax.data.pipeline import counters_or_new, in_order, rows_made
from moemoe_jax.data.questions import Example
from moemoe_jax.data.reader import ProductReader
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.sources import RecordSource
from moemoe_jax.data.survey import survey
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.errors import UserError
from moemoe_jax.files import shown


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

    def __init__(self, reader: ProductReader, seed: int, mine: Sequence[int] | None):
        config = reader.config
        self._lengths = config.text_lengths
        found = survey(
            reader,
            config.products_per_batch * config.questions_per_product,
            measure=len(self._lengths) > 1,
        )
        setting, limit = config.question_tokens_setting, config.question_tokens
        _warn_of_cut(reader, "questions", found.questions, setting, limit)
        answers, limit = found.full_answers, config.answer_length
        _warn_of_cut(reader, "answers", answers, "answer_length", limit)
        self.products = len(found.indices)
        self.questions = int(found.counts.sum())
        self.steps_per_epoch = self.products / config.products_per_batch
        self.attributes = found.attributes
        self.rows = config.distinct_questions or question_rows(config, len(found.questions))
        self.source, self.rejects, self.notes = reader.source, reader.rejects, reader.notes
        self.needless: Callable[[int], bool] = lambda record: False
        self._reader, self._seed = reader, seed
        self._mine = rows_made(config, mine)
        self._indices = found.indices
        self._buckets = np.searchsorted(self._lengths, found.lengths)
        self._answer_length = found.longest_answer
        self._order = BatchOrder(self._buckets, config.products_per_batch, seed)
        self._iterator = in_order(self._make, len(self._order), config)
        self._step = 0

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
        batch = collate(products, questions, self._reader, self.rows, length)
        batch["answer_ids"] = batch["answer_ids"][..., : self._answer_length]
        return batch

    def _shared(self, asked: list[tuple[Example, ...]], step: int) -> list[tuple[Example, ...]]:
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


def _warn_of_cut(
    reader: ProductReader, what: str, texts: Sequence[str], setting: str, limit: int
) -> None:
    """Warns, before the first step, of texts that are cut.

    A question's end may tell what is asked, and what is cut off an answer is not learnt.
    """
    lengths = {text: reader.short_texts.length(text) for text in texts}
    cut = {text: length for text, length in lengths.items() if length > limit}
    if cut:
        longest = max(cut, key=cut.__getitem__)
        logging.warning(
            "%s that are cut at data.%s=%d tokens: %d; the longest has %d: %s; "
            "--config.data.%s=%d cuts none",
            what,
            setting,
            limit,
            len(cut),
            cut[longest],
            shown(longest),
            setting,
            cut[longest],
        )


def train_batches(
    source: RecordSource,
    tokenizer: Tokenizer,
    config: DataConfig,
    seed: int,
    *,
    rows: Sequence[int] | None = None,
    rejects: Rejects | None = None,
) -> TrainBatches:
    """Makes the endless iterator of training batches.

    A product comes once an epoch, with Q of its questions drawn at random. Products without a
    question whose answer is known are left out and counted.

    Args:
      source: the records.
      tokenizer: for all texts.
      config: what a batch looks like.
      seed: decides order, questions and augmentation.
      rows: the rows of each batch that this process makes (`parallel.sharding.local_rows`), all of
        them by default. Its arrays hold these, but for the table of questions, which is the whole
        batch's.
      rejects: where rejects go; by default a new list, kept as an attribute of the iterator.

    Returns:
      An iterator of batches (see `batching.collate` for shapes) with `get_state`, `set_state` and
      `close`.

    Raises:
      UserError: nothing to train on, or too many rejects.
    """
    counters = counters_or_new(config, rejects)
    reader = ProductReader(source, tokenizer, config, labelled_only=True, **counters)
    return TrainBatches(reader, seed, rows)
