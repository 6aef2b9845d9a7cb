"""A record that is made when it is first looked at: with warm caches, never."""

from moemoe_jax.data import hide
from moemoe_jax.data.config import SourceConfig
from moemoe_jax.data.examples import context_text
from moemoe_jax.data.records import Record
from moemoe_jax.data.sources import RecordSource


class LazyRecord:
    """Record number `index` of a source."""

    def __init__(self, source: RecordSource, index: int, record: Record | None = None):
        self._source = source
        self.index = index
        self._record = record

    @property
    def record(self) -> Record:
        """The record, made now if it was not yet."""
        if self._record is None:
            self._record = self._source[self.index]
        return self._record

    def text(self, source: SourceConfig, hidden: bool) -> str:
        """The text of a source, without the words of the answers if they are hidden."""
        record = hide.hide_answers(self.record) if hidden else self.record
        return context_text(record, source.fields)
