"""Taking the answers out of a product's texts, so that the image has to give them.

For a share of the products (by hash of the id) the words of all attribute values are removed from
all texts, case and plural folded. All attributes at once, and not only the one that is asked: the
product is encoded once, and that encoding serves all of its questions.
"""

import dataclasses
import functools
import re

import numpy as np

from moemoe_jax.data.records import Record, SourceValue
from moemoe_jax.data.splits import id_hash, unit_points

_HYPHENS = r"\-\u2010\u2011"
_QUOTES = r"'\u2019"
# A word with its possessive; letters and digits of any alphabet, no underscore.
_WORD = re.compile(rf"[^\W_]+(?:[{_QUOTES}][^\W\d_]{{1,2}}(?![^\W_]))?")
_GAP = re.compile(rf"[{_HYPHENS}\s]+")
# What a removed neighbour leaves hanging: the hyphen of "multi-" and "-collar".
_DANGLING = re.compile(rf"(?:(?<=\s)|^)[{_HYPHENS}{_QUOTES}]+|[{_HYPHENS}]+(?=\s|$)")
_IRREGULAR = {"men": "man", "women": "woman", "children": "child", "feet": "foot"}


def is_hidden(id: str, fraction: float, seed: int = 0) -> bool:
    """Whether the answers of this record are to be hidden; `fraction` of all ids are."""
    return bool(unit_points(np.array([id_hash(id)], np.uint64), seed, "hide")[0] < fraction)


@functools.lru_cache(maxsize=65536)
def forms(word: str) -> frozenset[str]:
    """The word folded: itself and what it may be the plural or the possessive of.

    Two words are the same word if their forms meet. By hand: "watches" -> watches, watche, watch;
    "watch" -> watch; "Womens" -> womens, women, woman; "dress" -> dress.
    """
    word = word.casefold()
    found = {word, re.sub(rf"[{_QUOTES}].*", "", word)}
    for one in tuple(found):
        if len(one) > 3 and one.endswith("s") and not one.endswith("ss"):
            found.add(one[:-1])
            if one.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
                found.add(one[:-2])
            if one.endswith("ies"):
                found.add(one[:-3] + "y")
            if one.endswith("ves"):
                found |= {one[:-3] + "f", one[:-3] + "fe"}
    found |= {_IRREGULAR[one] for one in tuple(found) if one in _IRREGULAR}
    return frozenset(found)


def answer_words(record: Record) -> frozenset[str]:
    """The folded words of all that the record may be asked: attribute values and answers.

    A value of several words also counts as written in one: "Flip Flops" gives flip, flops and
    flipflops.
    """
    values = [value for value in record.attributes.values() if value is not None]
    values += [value for several in record.alternatives.values() for value in several]
    values += [a for question in record.questions for a in question.answers if a is not None]
    words: set[str] = set()
    for value in values:
        parts = _WORD.findall(value)
        for part in (*parts, "".join(parts)):
            words |= forms(part)
    return frozenset(words - {""})


def folded_words(text: str) -> frozenset[str]:
    """The words of a text, case and plural folded."""
    return frozenset().union(*map(forms, _WORD.findall(text)))


def tells(words: frozenset[str], value: str) -> bool:
    """Whether all words of a value are among a text's `folded_words`."""
    parts = _WORD.findall(value)
    return bool(parts) and all(forms(part) & words for part in parts)


def hide_words(text: str, words: frozenset[str]) -> str:
    """The text without these folded words, each alone or split in two ("T-shirt" for tshirt)."""
    spans = [match.span() for match in _WORD.finditer(text)]
    drop = [bool(forms(text[a:b]) & words) for a, b in spans]
    for i in range(len(spans) - 1):
        (a, b), (c, d) = spans[i], spans[i + 1]
        if _GAP.fullmatch(text[b:c]) and forms(text[a:b] + text[c:d]) & words:
            drop[i] = drop[i + 1] = True
    if not any(drop):
        return text
    kept, end = [], 0
    for (a, b), dropped in zip(spans, drop, strict=True):
        if dropped:
            kept.append(text[end:a])
            end = b
    kept.append(text[end:])
    return " ".join(_DANGLING.sub(" ", " ".join(kept)).split())


def hide_answers(record: Record) -> Record:
    """The record with the words of its attribute values removed from all of its texts.

    Images stay; so do the attributes. A text of which no word is left is no longer a source.
    """
    words = answer_words(record)

    def clean(value: SourceValue) -> SourceValue | None:
        if isinstance(value, str):
            rest = hide_words(value, words)
            return rest if _WORD.search(rest) else None
        if isinstance(value, tuple):
            return tuple(part for one in value if (part := clean(one)) is not None) or None
        return value

    sources = {name: clean(value) for name, value in record.sources.items()}
    return dataclasses.replace(
        record, sources={name: value for name, value in sources.items() if value is not None}
    )
