"""Reads products: sources as arrays, questions as tokens, each made once and then kept in memory.

Reading a product is the costly part of making a batch, so what does not change from epoch to epoch
(decoded images, tokenised texts, the list of questions) is kept up to a limit.

Shapes: K source tokens.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from moemoe_jax.data import hide
from moemoe_jax.data.cache import BoundedCache
from moemoe_jax.data.config import DataConfig, SourceConfig
from moemoe_jax.data.dropout import drop_sources, drop_words, told_questions
from moemoe_jax.data.examples import Product, check_image_size
from moemoe_jax.data.image_reader import ImageReader
from moemoe_jax.data.lazy import LazyRecord
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.questions import Example, examples_of
from moemoe_jax.data.records import Record
from moemoe_jax.data.rejects import Rejects
from moemoe_jax.data.short_texts import ShortTexts
from moemoe_jax.data.sources import RecordSource
from moemoe_jax.data.tokenizer import Tokenizer
from moemoe_jax.files import shown


class ProductReader:
    """Reads products of one source; safe to share among threads.

    Attributes:
      short_texts: the tokens of questions and answers.
      images: the pixels of images.
    """

    def __init__(
        self,
        source: RecordSource,
        tokenizer: Tokenizer,
        config: DataConfig,
        *,
        rejects: Rejects,
        notes: Notes,
        labelled_only: bool,
        ask: Sequence[str] = (),
    ):
        """Keeps its arguments; reads nothing yet.

        Args:
          source: the records.
          tokenizer: for texts, questions and answers.
          config: what a batch looks like.
          rejects: gets the images that cannot be read, and the products left with nothing.
          notes: counts what was truncated.
          labelled_only: leaves out questions without a known answer (for training).
          ask: attributes to ask of every record, whether it says something about them or not.

        Raises:
          UserError: the records' images were made smaller than `config.image_size`.
        """
        check_image_size(source, config)
        self.source = source
        self.config = config
        self.ask = tuple(ask)
        self.rejects = rejects
        self.notes = notes
        self._labelled_only = labelled_only
        self._tokenizer = tokenizer
        self._texts = BoundedCache(config.cache_text_mib)
        self.short_texts = ShortTexts(tokenizer, config, notes, self._texts)
        self.images = ImageReader(config, self.reject)

    def examples(
        self, index: int, record: Record | None = None, notes: Notes | None = None
    ) -> tuple[str, tuple[Example, ...]]:
        """Returns a record's id and all questions to ask about it.

        Args:
          index: which record.
          record: that record, if it is at hand.
          notes: counts the questions left out.
        """
        known = self._texts.get(index)
        if known is None:
            record = self.source[index] if record is None else record
            examples = examples_of(record, self.config, ask=self.ask, notes=notes)
            kept = tuple(e for e in examples if e.labelled or not self._labelled_only)
            if notes is not None:
                notes.add("questions without a known answer left out", len(examples) - len(kept))
                self._note_unread(record, notes)
            known = (record.id, kept)
            self._texts.put(index, known, 400 * len(kept))
        return known

    def _note_unread(self, record: Record, notes: Notes) -> None:
        """Notes a source of which a record has no field, while it has others that nobody reads."""
        read = {field for source in self.config.sources for field in source.fields}
        unread = sorted(record.sources.keys() - read)
        for source in self.config.sources if unread else ():
            if not any(field in record.sources for field in source.fields):
                fields = ", ".join(source.fields)
                event = f"records without source {source.name!r} ({fields}), but with others"
                others = ", ".join(map(shown, unread))
                notes.add(event, example=f"record {shown(record.id)} with {others}, not read")

    def longest_text(self, index: int, record: Record) -> int:
        """The most tokens that a text of the record can have, whatever training takes away.

        Nothing is kept of it: with word dropout the tokens are others each time.
        """
        config, lazy = self.config, LazyRecord(self.source, index, record)
        always = self._hidden(record.id, None)
        hidden = {always, always or config.augment.hide_probability > 0}
        ids = [
            self._tokenizer.encode(lazy.text(one, hide), config.text_length)[0]
            for one in config.sources
            if one.kind == "text"
            for hide in hidden
        ]
        front = 0
        if config.context_includes_question:
            asked = self.examples(index, record)[1]
            front = max(len(self.short_texts.question_ids(one.question)) for one in asked) - 1
        return min(config.text_length, front + max(map(len, ids), default=1))

    def read(
        self,
        index: int,
        choose: Callable[[tuple[Example, ...]], tuple[Example, ...]],
        remove_sources: Sequence[str] = (),
        rng: np.random.Generator | None = None,
    ) -> Product:
        """Reads one product.

        Args:
          index: which record.
          choose: picks the questions to ask in this row from all of the product's.
          remove_sources: names of sources to leave out.
          rng: randomness for augmentation; without it there is none.

        Returns:
          The product. If none of its sources can be read (which is a reject), it has no questions
          either; if only `remove_sources` left it without any, its questions stay.

        Raises:
          UserError: the share of rejects has passed `max_reject_fraction`.
        """
        lazy = LazyRecord(self.source, index)
        record_id, examples = self.examples(index)
        examples = choose(examples)
        hidden = self._hidden(record_id, rng)

        def take(source: SourceConfig) -> np.ndarray | None:
            if source.kind == "image":
                return self.images.read(lazy, source, rng)
            return self._text(lazy, source, hidden, rng)

        kept = [one for one in self.config.sources if one.name not in remove_sources]
        taken = ((one.name, take(one)) for one in kept)
        sources = {name: value for name, value in taken if value is not None}
        removed = [one for one in self.config.sources if one.name in remove_sources]
        if not sources and not any(take(one) is not None for one in removed):
            self.reject(lazy.record, index, "no source: none of the record's sources can be read")
            return Product((), {})
        if rng is not None:
            sources, examples = self._drop(lazy, sources, examples, hidden, rng)
        if self.config.context_includes_question and examples:
            sources = self._with_question(index, sources, examples[0].question)
        return Product(examples, sources)

    def reject(self, record: Record, index: int, reason: str, file: Path | None = None) -> None:
        """Writes down a reject: an image file, or where there is none, a record of the source.

        Raises:
          UserError: the share of rejects has passed `max_reject_fraction`.
        """
        place = (file, 0) if file else (self.source.name, index + 1)
        self.rejects.add(*place, reason, id=record.id)
        self.rejects.check(max(self.rejects.seen, len(self.source)))

    def _hidden(self, record_id: str, rng: np.random.Generator | None) -> bool:
        """Whether the text must not tell the answers, for good or just in this row."""
        config = self.config
        hidden = config.hide_answer_fraction > 0 and hide.is_hidden(
            record_id, config.hide_answer_fraction, config.hide_seed
        )
        if rng is not None and config.augment.hide_probability > 0:
            hidden |= bool(rng.random() < config.augment.hide_probability)
        return hidden

    def _text(
        self,
        lazy: LazyRecord,
        source: SourceConfig,
        hidden: bool,
        rng: np.random.Generator | None,
    ) -> np.ndarray | None:
        """Returns a text source's tokens, int32 [N <= K], or None where it is empty."""
        drop = self.config.augment.word_dropout if rng is not None else 0.0
        # Without dropout the tokens are kept, with it only the text that they are made of.
        key = (lazy.index, source.name, hidden, drop > 0.0)
        kept = self._texts.get(key)
        if kept is None:
            kept = lazy.text(source, hidden)
            if drop == 0.0:
                kept = self._encode(kept, lazy.index, source)
            self._texts.put(key, kept, len(kept) * (1 if drop > 0.0 else 4))
        if drop > 0.0:
            kept = self._encode(drop_words(kept, rng, drop), lazy.index, source)
        return kept if len(kept) > 1 else None

    def _drop(
        self,
        lazy: LazyRecord,
        sources: dict[str, np.ndarray],
        examples: tuple[Example, ...],
        hidden: bool,
        rng: np.random.Generator,
    ) -> tuple[dict[str, np.ndarray], tuple[Example, ...]]:
        """Takes sources away, and with a text what it alone may have told (`dropout_asks`).

        If it told all that is asked, it stays.
        """
        kept = drop_sources(sources, rng, self.config.sources)
        told = [
            self._told(lazy, one, hidden)
            for one in self.config.sources
            if one.dropout_asks == "untold" and one.name in sources and one.name not in kept
        ]
        left = tuple(e for e in examples if not any(e.question in some for some in told))
        return (kept, left) if left else (sources, examples)

    def _told(self, lazy: LazyRecord, source: SourceConfig, hidden: bool) -> frozenset[str]:
        """The questions about a product that one of its texts answers."""
        key = (lazy.index, source.name, hidden, "told")
        told = self._texts.get(key)
        if told is None:
            told = told_questions(lazy.text(source, hidden), self.examples(lazy.index)[1])
            self._texts.put(key, told, 100 * (1 + len(told)))
        return told

    def _encode(self, text: str, index: int, source: SourceConfig) -> np.ndarray:
        ids, truncated = self._tokenizer.encode(text, self.config.text_length)
        if truncated:
            self._note_cut(source.name, index)
        return ids

    def _note_cut(self, source: str, index: int) -> None:
        event = f"source {source!r} truncated (data.text_length={self.config.text_length})"
        self.notes.once(event, index, f"record {shown(self.examples(index)[0])}")

    def _with_question(
        self, index: int, sources: dict[str, np.ndarray], question: str
    ) -> dict[str, np.ndarray]:
        """Puts the question in front of every text source, cutting the end of what is too long.

        Where a product has no text, it is the first text source by itself: else nobody would know.
        """
        texts = [one.name for one in self.config.sources if one.kind == "text"]
        alone, length = self.short_texts.question_ids(question), self.config.text_length
        joined = dict(sources)
        if not any(name in sources for name in texts):
            joined[texts[0]] = alone
        for name in texts:
            if name in sources:
                ids = np.concatenate([alone[:-1], sources[name]])
                if len(ids) > length:
                    self._note_cut(name, index)
                    ids = np.append(ids[: length - 1], alone[-1])
                joined[name] = ids
        return joined
