"""Text to token ids and back, in T5's convention: `<pad>` 0, `</s>` 1, `<unk>` 2.

A tokenizer is a folder: `tokenizer.json` (read by the Rust library directly, as importing
transformers takes seconds), or SentencePiece's `spiece.model`. One that is trained here falls back
to bytes, so that no answer is unrepresentable, and normalises only Unicode composition (NFC) and
white space, so that decoding gives back what was encoded.

Shapes: N tokens of one text, `</s>` included.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence
import io
import json
from pathlib import Path
import re
import string
from typing import Protocol
import unicodedata

from absl import logging
import numpy as np

from moemoe_jax.errors import UserError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
_SPECIAL = ("<pad>", "</s>", "<unk>")
TOKENIZER_FILES = _JSON, _SPM, _CONFIG = "tokenizer.json", "spiece.model", "tokenizer_config.json"
TOKENIZERS = _JSON, _SPM  # either is enough
# Read by transformers: the class that takes tokenizer.json as it is. (Its T5Tokenizer rebuilds the
# pipeline from the vocabulary and would lose the byte fallback.)
_HF_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


def normalise(text: str) -> str:
    """What a tokenizer trained here makes of `text` before it splits it: NFC, single blanks."""
    # Half of a surrogate pair is no character; U+2581 is how pieces write a blank.
    text = text.encode("utf-8", "replace").decode("utf-8").replace("▁", " ")
    return " ".join(unicodedata.normalize("NFC", text).split())


class _Backend(Protocol):
    size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...

    def files(self) -> dict[str, bytes]: ...


class _Rust:
    """tokenizer.json, through the `tokenizers` library."""

    def __init__(self, serialized: str):
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(serialized)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def special(self) -> list[str | None]:
        return [self._tokenizer.id_to_token(i) for i in range(len(_SPECIAL))]

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def files(self) -> dict[str, bytes]:
        return {_JSON: self._tokenizer.to_str(pretty=False).encode("utf-8")}


class _SentencePiece:
    """spiece.model, through the `sentencepiece` library."""

    def __init__(self, model: bytes):
        import sentencepiece

        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = self._processor.get_piece_size()

    def special(self) -> list[str | None]:
        return [self._processor.id_to_piece(i) for i in range(min(len(_SPECIAL), self.size))]

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode([i for i in ids if i < self.size])

    def files(self) -> dict[str, bytes]:
        return {_SPM: self._model}


class Tokenizer:
    """Text to ids and back; safe to share among threads. Made by `load` or `train`."""

    def __init__(self, backend: _Backend, config: bytes | None = None):
        self._backend = backend
        self._config = config

    @property
    def vocab_size(self) -> int:
        """Number of ids; a model's vocabulary must be at least as large."""
        return self._backend.size

    def encode(self, text: str, max_length: int) -> tuple[np.ndarray, bool]:
        """Encodes one text.

        Args:
          text: any text; half surrogate pairs become "?".
          max_length: the most tokens to return, `</s>` included.

        Returns:
          int32 [N], N <= max_length, ending with `</s>` and holding neither pad nor another
          `</s>`; and whether tokens were cut off.
        """
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode("utf-8")
        body = np.asarray(self._backend.encode(text), np.int32)
        truncated = len(body) >= max_length
        body = body[: max_length - 1]
        # A text may spell "</s>" (a strike-out in HTML); it must not end the sequence.
        body = np.where(body < UNK_ID, np.int32(UNK_ID), body)
        return np.append(body, np.int32(EOS_ID)), truncated

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of `ids` up to the first `</s>`, without padding."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        ends = np.flatnonzero(ids == EOS_ID)
        ids = ids[: ends[0]] if len(ends) else ids
        return self._backend.decode(ids[(ids != PAD_ID) & (ids != UNK_ID)].tolist()).strip()

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer into a folder, which `load` and transformers' AutoTokenizer read."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self._backend.files().items():
            (directory / name).write_bytes(content)
        config = self._config or json.dumps(_HF_CONFIG, indent=2).encode("utf-8")
        (directory / _CONFIG).write_bytes(config)

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Reads a T5 tokenizer's folder, whoever wrote it.

        Args:
          directory: holds `tokenizer.json` or `spiece.model`; the former is preferred.

        Raises:
          UserError: no such folder, no tokenizer in it, a broken file, or not T5's special ids.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(
                f"tokenizer folder {directory} does not exist: give a folder that holds {_JSON} "
                f"or {_SPM}, or leave data.tokenizer empty to train one"
            )
        path = next((p for p in (directory / _JSON, directory / _SPM) if p.is_file()), None)
        if path is None:
            raise UserError(
                f"{directory} is not a tokenizer: it holds neither {_JSON} nor {_SPM}; copy one "
                "there, or leave data.tokenizer empty to train one"
            )
        try:
            content = path.read_bytes()
            backend = _Rust(content.decode("utf-8")) if path.name == _JSON else None
            backend = backend or _SentencePiece(content)
        except Exception as error:  # the Rust library raises bare Exception
            reason = " ".join(str(error).split())[:200]
            message = f"{path} cannot be read as a tokenizer ({reason}): copy it again"
            raise UserError(message) from None
        found = backend.special()
        if tuple(found[:2]) != _SPECIAL[:2]:
            raise UserError(
                f"{path} has ids 0 and 1 for {found[:2]}, not for <pad> and </s>: give a T5 "
                "tokenizer, or leave data.tokenizer empty to train one"
            )
        config = directory / _CONFIG
        content = config.read_bytes() if config.is_file() else None
        if content is None and path.name == _SPM:
            content = json.dumps({**_HF_CONFIG, "tokenizer_class": "T5Tokenizer"}).encode("utf-8")
        return cls(backend, content)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, single: Sequence[str] = ()
    ) -> "Tokenizer":
        """Trains a Unigram tokenizer; the same texts in the same order give the same one.

        Args:
          texts: titles, descriptions, questions, answers.
          vocab_size: the most pieces; small texts give fewer, which is logged.
          single: what is to be one piece each, such as the word for "no answer"; a text of several
            words is left to the pieces of each.

        Raises:
          UserError: no text, or too few pieces for the characters that the texts use.
        """
        import sentencepiece

        lines = _with_whole_words(filter(None, map(normalise, texts)))
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(line.replace("\0", " ") for line in lines),
                model_writer=model,
                model_type="unigram",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                pad_id=PAD_ID,
                eos_id=EOS_ID,
                unk_id=UNK_ID,
                bos_id=-1,
                pad_piece="<pad>",
                user_defined_symbols=["▁" + w for w in map(normalise, single) if " " not in w],
                byte_fallback=True,
                required_chars="".join(c for c in string.printable if not c.isspace()),
                normalization_rule_name="identity",
                max_sentence_length=2**24,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(_training_error(str(error), vocab_size)) from None
        tokenizer = cls(_Rust(_to_json(model.getvalue())))
        if tokenizer.vocab_size < vocab_size:
            logging.info(
                "The tokenizer has %d pieces, not %d: the texts hold no more.",
                tokenizer.vocab_size,
                vocab_size,
            )
        return tokenizer


def _with_whole_words(lines: Iterable[str]) -> Iterator[str]:
    """Adds to the lines of a corpus one with each word that they repeat, and a comma behind it.

    SentencePiece takes as candidates for pieces what occurs in two different blank-separated words,
    however often each of them occurs. Without a second form, "Navy" a thousand times is no
    candidate, and becomes "Nav" and "y".
    """
    counts: collections.Counter[str] = collections.Counter()
    for line in lines:
        counts.update(re.findall(r"\w+", line))
        yield line
    yield from (f"{word}," for word, count in sorted(counts.items()) if count > 1)


def _training_error(message: str, vocab_size: int) -> str:
    if "sentences_.empty()" in message:
        return "there is no text to train a tokenizer on: check data.source and data.sources"
    needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if needed:
        return (
            f"data.tokenizer_vocab_size {vocab_size} is too small for the characters of these "
            f"texts: give at least {needed.group(1)}"
        )
    return f"the tokenizer could not be trained: {' '.join(message.split())}"


def _to_json(model: bytes) -> str:
    """Turns a SentencePiece model trained above into the text of a tokenizer.json."""
    import sentencepiece
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Rust

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    scores = [processor.get_score(i) for i in range(len(processor))]
    # Special and byte pieces would match a text that spells them; spelling "<0x41>" takes six
    # pieces of at worst the lowest score, so at ten times that score they never win.
    lowest = 10 * min(scores)
    pieces = [
        (processor.id_to_piece(i), lowest if i < len(_SPECIAL) or processor.is_byte(i) else score)
        for i, score in enumerate(scores)
    ]
    blanks = {"replacement": "▁", "prepend_scheme": "always", "split": True}
    rust = Rust(models.Unigram(pieces, unk_id=UNK_ID, byte_fallback=True))
    rust.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"[\s▁]+"), " "), normalizers.Strip()]
    )
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**blanks)]
    )
    rust.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(**blanks)])
    rust.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS_ID)]
    )
    return rust.to_str()
