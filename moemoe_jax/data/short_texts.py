"""The tokens of questions and answers, each made once and then kept in memory.

Shapes: J question tokens, L answer tokens.
"""

import numpy as np

from moemoe_jax.data.cache import BoundedCache
from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.questions import Example
from moemoe_jax.data.tokenizer import Tokenizer, normalise
from moemoe_jax.files import shown


class ShortTexts:
    """Tokenises questions and answers; safe to share among threads."""

    def __init__(self, tokenizer: Tokenizer, config: DataConfig, notes: Notes, cache: BoundedCache):
        """Keeps its arguments.

        Args:
          tokenizer: for both.
          config: how long they may be.
          notes: counts what was truncated, and answers that the tokenizer changes.
          cache: keeps the tokens.
        """
        self._tokenizer, self._config, self._notes = tokenizer, config, notes
        self._cache = cache

    def question_ids(self, text: str) -> np.ndarray:
        """Returns a question's tokens, int32 [N <= J]."""
        config = self._config
        setting = config.question_tokens_setting
        return self._encode("question", text, text, config.question_tokens, setting)

    def length(self, text: str) -> int:
        """How many tokens a question or an answer would have, were there no limit."""
        most = len(text.encode()) + 8  # a token a byte, and what stands around them
        return len(self._tokenizer.encode(text, most)[0])

    def answer_ids(self, example: Example) -> np.ndarray:
        """Returns the tokens to learn, int32 [N <= L]; none where the answer is not known."""
        if not example.labelled:
            return np.zeros(0, np.int32)
        text = self.answer(example)
        whose = f"{example.attribute or example.question}: {text}"
        return self._encode("answer", text, whose, self._config.answer_length, "answer_length")

    def answer(self, example: Example) -> str:
        """The text to learn of a question whose answer is known."""
        return self._config.no_answer_text if example.null else example.answers[0]

    def _encode(self, kind: str, text: str, whose: str, length: int, setting: str) -> np.ndarray:
        ids = self._cache.get((kind, text))
        if ids is None:
            ids, truncated = self._tokenizer.encode(text, length)
            if truncated:
                event = f"{kind} truncated (data.{setting}={length})"
                self._notes.once(event, text, shown(whose))
            elif kind == "answer" and text != self._config.no_answer_text:
                self._note_changed(text, ids, whose)
            self._cache.put((kind, text), ids, ids.nbytes + len(text))
        return ids

    def _note_changed(self, answer: str, ids: np.ndarray, whose: str) -> None:
        """Notes an answer of which the tokenizer makes another: a model that gives it is wrong."""
        back, wanted = (normalise(one).lower() for one in (self._tokenizer.decode(ids), answer))
        if back != wanted:
            event = "answer that the tokenizer changes, which no model can give"
            self._notes.once(event, answer, f"{shown(whose)}, which comes back as {shown(back)}")
