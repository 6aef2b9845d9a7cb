"""One product as the package sees it, and the one place where outside data becomes one.

Every source format ends in `parse_record`, so what a record may hold is checked once, with a reason
that a person can act on. Only the type, the place and the shape of things are checked here: whether
an image can be decoded is found out when it is read.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import functools
from pathlib import Path
from typing import Any

from moemoe_jax.data.image_paths import RecordError, image_path
from moemoe_jax.data.values import kind_of, text_of, text_or_number

Image = Path | bytes  # a file to read, or the encoded file itself (JPEG, PNG...)
SourceValue = str | tuple[str, ...] | Image | tuple[Image, ...]

EVIDENCE = ("image", "text", "both", "none")
_KEYS = (
    "id", "sources", "product_type", "marketplace", "attributes", "alternatives", "questions",
    "evidence",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of the record's own.

    `answers`: all are acceptable, the first is the one to learn; `(None,)` = known to have no
    answer; empty = not known.
    """

    question: str
    answers: tuple[str | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Record:
    """One product or document.

    Attributes:
      id: unique within a source.
      sources: what can be read about the product. A text is a `str` or a tuple of them (bullets),
        also where it was a number; an image is a `Path` or encoded `bytes`, or a tuple of them, of
        which the first is used. An empty or missing source is not in the mapping.
      product_type: the kind of product, or None.
      marketplace: where it is sold, or None.
      attributes: name -> value; None = known to have no answer. What is not known is not in it.
      alternatives: name -> all acceptable values, the first being that of `attributes`; only for
        attributes that have several.
      questions: questions asked in words, beside the attributes.
      evidence: attribute -> where its value can be seen: "image", "text", "both" or "none".
    """

    id: str
    sources: Mapping[str, SourceValue] = dataclasses.field(default_factory=dict)
    product_type: str | None = None
    marketplace: str | None = None
    attributes: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    alternatives: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    questions: tuple[Question, ...] = ()
    evidence: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def accepted(self, attribute: str) -> tuple[str, ...]:
        """All acceptable values of an attribute; empty where it has no answer or is unknown."""
        if attribute in self.alternatives:
            return tuple(self.alternatives[attribute])
        value = self.attributes.get(attribute)
        return () if value is None else (value,)

    def text(self, name: str) -> str | None:
        """A text source as one string (parts joined by a blank), or None where it is missing."""
        value = self.sources.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, tuple) and all(isinstance(part, str) for part in value):
            return " ".join(value)
        return None

    def image(self, name: str) -> Image | None:
        """The image of a source (the first, where it has several), or None."""
        value = self.sources.get(name)
        if isinstance(value, tuple):
            value = value[0] if value else None
        return value if isinstance(value, Path | bytes) else None


def is_image_source(name: str) -> bool:
    """Whether a source of this name holds images: "image", "images", "image_back", "front_image".

    A path and a text look the same in JSON, so the name decides.
    """
    return any(part in ("image", "images") for part in name.lower().split("_"))


def parse_record(
    mapping: Mapping[str, Any],
    base_dir: Path | str | None,
    blobs: Sequence[bytes] = (),
) -> Record:
    """Checks one decoded JSON object and returns the record.

    Args:
      mapping: the keys of the record format; other keys are ignored, unless they look like a
        misspelling of a known one.
      base_dir: the folder that image paths are relative to and must stay in; None = no paths.
      blobs: encoded images that the mapping points to by `{"blob": index}`.

    Raises:
      RecordError: one line that says what is wrong.
    """
    if not isinstance(mapping, Mapping):
        raise RecordError(f"not an object: a {kind_of(mapping)} where a record should be")
    for key in mapping:
        if key not in _KEYS and (near := _misspelt(key)):
            raise RecordError(f"unknown key {key!r}: did you mean {near!r}?")
    if "sources" not in mapping:
        raise RecordError("no 'sources': put title, description, image... inside a 'sources' key")
    sources = {}
    for name, value in _mapping(mapping, "sources").items():
        parsed = _source(name, value, base_dir, blobs)
        if parsed is not None:
            sources[name] = parsed
    attributes, alternatives = _attributes(mapping)
    return Record(
        id=identity(mapping),
        sources=sources,
        product_type=_optional_text(mapping, "product_type"),
        marketplace=_optional_text(mapping, "marketplace"),
        attributes=attributes,
        alternatives=alternatives,
        questions=_questions(mapping.get("questions")),
        evidence=_evidence(mapping),
    )


def identity(mapping: Mapping[str, Any]) -> str:
    """The id of a decoded JSON object, as `parse_record` takes it.

    Raises:
      RecordError: it has none, or one that is neither a text nor a whole number.
    """
    value = mapping.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or value == "":
        raise RecordError("no id")
    text = text_of(value, "'id'")
    if not text.strip():
        raise RecordError("no id")
    return text


def record_to_mapping(record: Record) -> tuple[dict[str, Any], list[Image]]:
    """The inverse of `parse_record`: a JSON-ready mapping, and the images that it points to.

    Each image is replaced by `{"blob": index}`, its place in the returned list.
    """
    images: list[Image] = []

    def pack(value):
        if isinstance(value, tuple):
            return [pack(part) for part in value]
        if isinstance(value, str):
            return value
        images.append(value)
        return {"blob": len(images) - 1}

    mapping: dict[str, Any] = {
        "id": record.id,
        "sources": {name: pack(value) for name, value in record.sources.items()},
    }
    for key in ("product_type", "marketplace"):
        if getattr(record, key) is not None:
            mapping[key] = getattr(record, key)
    for key in ("attributes", "evidence"):
        if getattr(record, key):
            mapping[key] = dict(getattr(record, key))
    if record.alternatives:
        mapping["alternatives"] = {k: list(v) for k, v in record.alternatives.items()}
    if record.questions:
        mapping["questions"] = [
            {"question": q.question, "answers": list(q.answers)} for q in record.questions
        ]
    return mapping, images


@functools.lru_cache(maxsize=1024)
def _misspelt(key: Any) -> str | None:
    near = difflib.get_close_matches(str(key).lower(), _KEYS, n=1, cutoff=0.85)
    return near[0] if near else None


def _mapping(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = mapping.get(key)
    if value is None and key != "sources":
        return {}
    if not isinstance(value, Mapping):
        raise RecordError(f"wrong type: {key!r} is a {kind_of(value)}, not an object")
    found = {text_of(name, f"a name in {key!r}").strip(): part for name, part in value.items()}
    if "" in found or len(found) < len(value):
        raise RecordError(f"wrong name: one in {key!r} is blank, or twice there but for blanks")
    return found


def _optional_text(mapping: Mapping[str, Any], key: str) -> str | None:
    value = mapping.get(key)
    return (text_of(value, repr(key)).strip() or None) if value is not None else None


def _source(name: str, value: Any, base_dir: Any, blobs: Sequence[bytes]) -> SourceValue | None:
    """One source; None where there is nothing in it."""
    if isinstance(value, list | tuple):
        parts = [_source(name, part, base_dir, blobs) for part in value]
        if any(isinstance(part, tuple) for part in parts):
            raise RecordError(f"wrong type: source {name!r} is a list of lists")
        return tuple(part for part in parts if part is not None) or None
    if value is None:
        return None
    if is_image_source(name) or isinstance(value, bytes | Path):
        return _image(name, value, base_dir, blobs)
    text = text_or_number(value, f"source {name!r}")
    return text if text.strip() else None


def _image(name: str, value: Any, base_dir: Any, blobs: Sequence[bytes]) -> Image | None:
    if isinstance(value, Mapping):
        if "blob" in value:
            index = value["blob"]
            if not isinstance(index, int) or not 0 <= index < len(blobs):
                raise RecordError(f"wrong image: source {name!r} points to blob {index!r}")
            value = blobs[index]
        else:  # the struct that Hugging Face datasets write
            value = value.get("bytes") or value.get("path")
    if value is None or value in ("", b""):
        return None
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str | Path):
        raise RecordError(f"wrong type: source {name!r} is a {kind_of(value)}, not an image path")
    return image_path(str(value), base_dir)


def _value(value: Any, what: str) -> str | None:
    """An attribute value as text; None where it is blank."""
    return text_or_number(value, what).strip() or None


def _attributes(mapping: Mapping[str, Any]):
    attributes: dict[str, str | None] = {}
    alternatives: dict[str, tuple[str, ...]] = {}
    several = _mapping(mapping, "alternatives")
    for name, given in _mapping(mapping, "attributes").items():
        what = f"attribute {name!r}"
        if given is None:
            attributes[name] = None
            continue
        values = list(given) if isinstance(given, list | tuple) else [given]
        more = several.get(name) or []
        if not isinstance(more, list | tuple):
            raise RecordError(f"wrong type: 'alternatives' of {name!r} is not a list")
        parsed = dict.fromkeys(v for g in (*values, *more) if (v := _value(g, what)) is not None)
        if parsed:
            attributes[name] = next(iter(parsed))
        if len(parsed) > 1:
            alternatives[name] = tuple(parsed)
    for name in several:
        if attributes.get(name) is None:
            raise RecordError(
                f"wrong alternatives: {name!r} has none of its values in 'attributes'"
            )
    return attributes, alternatives


def _questions(given: Any) -> tuple[Question, ...]:
    if given is None:
        return ()
    if not isinstance(given, list | tuple):
        raise RecordError(f"wrong type: 'questions' is a {kind_of(given)}, not a list")
    questions = []
    for one in given:
        if not isinstance(one, Mapping) or not one.get("question"):
            raise RecordError("wrong question: not an object such as {'question': …, 'answer': …}")
        if "answer" in one and "answers" in one:
            raise RecordError("wrong question: both 'answer' and 'answers'; give one of them")
        answers = [one["answer"]] if "answer" in one else one.get("answers") or []
        if not isinstance(answers, list | tuple):
            raise RecordError(f"wrong type: 'answers' is a {kind_of(answers)}, not a list")
        kept = [None if a is None else _value(a, "an answer") for a in answers]
        pairs = zip(answers, kept, strict=True)
        questions.append(
            Question(
                text_of(one["question"], "'question'"),
                tuple(k for a, k in pairs if a is None or k is not None),
            )
        )
    return tuple(questions)


def _evidence(mapping: Mapping[str, Any]) -> dict[str, str]:
    evidence = _mapping(mapping, "evidence")
    for name, kind in evidence.items():
        if kind not in EVIDENCE:
            raise RecordError(f"wrong evidence: {name!r} is {kind!r}, not one of {EVIDENCE}")
    return evidence
