"""Answers as evaluation sees them: what was said, how surely, and what would have been right.

One answer is one line of JSON Lines, or one row of Parquet. Files appear whole or not at all.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any, NamedTuple
import unicodedata

from moemoe_jax.errors import UserError

NO_ANSWER = "<none>"
_ROUNDING = 1e-6  # what float32 may leave above 1
_PARQUET_ROWS = 65536


class Alternative(NamedTuple):
    """Another answer to the same question, and how sure the model is of it, in [0, 1]."""

    answer: str | None
    confidence: float


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One answer to one question about one product.

    Attributes:
      id: the product.
      attribute: what was asked for; metrics are per attribute.
      question: the question's text.
      answer: the value given, or None if the model abstains ("this product has none").
      confidence: in [0, 1].
      source_weights: mean fusion weight of each source (eq 5).
      model: which model answered.
      calibrated: in [0, 1], the confidence after calibration.
      golds: the right values, any of which will do; `()` means that it is known that there is no
        answer; None means that nothing is known, and the answer is left out of all metrics.
      evidence: where the gold can be seen: "image", "text", "both" or "none".
      product_type: the product's type.
      alternatives: the next best answers, the best first; () where they were not asked for.
    """

    id: str
    attribute: str
    question: str
    answer: str | None
    confidence: float
    source_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    model: str = ""
    calibrated: float | None = None
    golds: tuple[str, ...] | None = None
    evidence: str | None = None
    product_type: str | None = None
    alternatives: tuple[Alternative, ...] = ()

    def __post_init__(self):
        if isinstance(self.golds, str):  # its letters would become golds
            raise ValueError(f"golds of answer {self.id!r} is a string: give a tuple of strings")
        for name in ("confidence", "calibrated"):
            value = getattr(self, name)
            # Written so that NaN is refused as well.
            if value is not None and not -_ROUNDING <= value <= 1 + _ROUNDING:
                raise ValueError(
                    f"{name} {value} of answer {self.id!r} to {self.attribute!r} is not in [0, 1]"
                )

    def to_json(self) -> dict[str, Any]:
        """The answer as JSON types; optional fields that are not known are left out."""
        line = {
            "id": self.id,
            "attribute": self.attribute,
            "question": self.question,
            "answer": self.answer,
            "confidence": float(self.confidence),
            "source_weights": {name: float(w) for name, w in self.source_weights.items()},
            "model": self.model,
        }
        if self.calibrated is not None:
            line["calibrated"] = float(self.calibrated)
        if self.golds is not None:
            line["golds"] = list(self.golds)
        if self.evidence is not None:
            line["evidence"] = self.evidence
        if self.product_type is not None:
            line["product_type"] = self.product_type
        if self.alternatives:
            line["alternatives"] = [alternative._asdict() for alternative in self.alternatives]
        return line

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "ScoredAnswer":
        """Inverse of `to_json`; fields that are not an answer's are ignored.

        Raises:
          ValueError: a required field is missing or a value cannot be.
        """
        missing = [n for n in ("id", "attribute", "answer", "confidence") if n not in line]
        if missing:
            raise ValueError(f"an answer lacks {', '.join(missing)}")
        known = {f.name: line[f.name] for f in dataclasses.fields(cls) if f.name in line}
        golds = known.get("golds")
        known["golds"] = tuple(golds) if isinstance(golds, list) else golds
        known["source_weights"] = dict(known.get("source_weights") or {})
        others = known.get("alternatives") or ()
        known["alternatives"] = tuple(Alternative(**other) for other in others)
        return cls(**{"question": "", **known})


def normalise(text: str) -> str:
    """Lower case, without outer spaces, inner runs of spaces made one, letters and accents as one.

    The last (NFC) because a tokenizer gives a text back so, however it was written.
    """
    return " ".join(unicodedata.normalize("NFC", text.lower()).split())


def is_abstention(answer: str | None, no_answer_text: str = NO_ANSWER) -> bool:
    """True if the answer names no value: None, an empty text, or the text of "no answer"."""
    return answer is None or normalise(answer) in ("", normalise(no_answer_text))


def gold_values(golds: Iterable[str], no_answer_text: str = NO_ANSWER) -> frozenset[str]:
    """The distinct gold values, normalised; empty if the product is known to have none."""
    return frozenset(normalise(g) for g in golds if not is_abstention(g, no_answer_text))


def is_correct(answer: ScoredAnswer, no_answer_text: str = NO_ANSWER) -> bool:
    """True if the answer matches any gold, or rightly abstains; False if nothing is known."""
    if answer.golds is None:
        return False
    values = gold_values(answer.golds, no_answer_text)
    if is_abstention(answer.answer, no_answer_text):
        return not values
    return normalise(answer.answer) in values


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary path beside `path` that takes its place once the block has succeeded."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_answers(path: str | os.PathLike, answers: Iterable[ScoredAnswer]) -> int:
    """Streams answers into `path`: Parquet if it ends in `.parquet`, JSON Lines otherwise.

    Returns:
      The number of answers written.
    """
    with replacing(path) as temporary:
        if pathlib.Path(path).suffix == ".parquet":
            return _write_parquet(temporary, answers)
        count = 0
        with open(temporary, "w", encoding="utf-8") as out:
            for answer in answers:
                out.write(json.dumps(answer.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
                count += 1
        return count


def read_answers(path: str | os.PathLike) -> Iterator[ScoredAnswer]:
    """Streams the answers of a JSON Lines or Parquet file.

    Raises:
      UserError: the file is missing, or a line is not an answer; the text names file and line.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"answers file {path} does not exist: give the answers.jsonl of a run")
    rows = _read_parquet(path) if path.suffix == ".parquet" else _read_json_lines(path)
    for number, row in rows:
        try:
            yield ScoredAnswer.from_json(json.loads(row) if isinstance(row, str) else row)
        except (ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}:{number}: not an answer ({reason}): write it anew") from error


def _read_json_lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def _parquet_schema():
    import pyarrow as pa

    kinds = {"confidence": pa.float64(), "calibrated": pa.float64()}
    kinds |= {"source_weights": pa.map_(pa.string(), pa.float64()), "golds": pa.list_(pa.string())}
    alternative = pa.struct([("answer", pa.string()), ("confidence", pa.float64())])
    kinds["alternatives"] = pa.list_(alternative)
    names = [field.name for field in dataclasses.fields(ScoredAnswer)]
    return pa.schema([(name, kinds.get(name, pa.string())) for name in names])


def _write_parquet(path: pathlib.Path, answers: Iterable[ScoredAnswer]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count, answers = _parquet_schema(), 0, iter(answers)
    with pq.ParquetWriter(path, schema) as writer:
        while rows := [a.to_json() for a in itertools.islice(answers, _PARQUET_ROWS)]:
            for row in rows:
                row["source_weights"] = list(row["source_weights"].items())
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _read_parquet(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file: write the answers anew") from error
