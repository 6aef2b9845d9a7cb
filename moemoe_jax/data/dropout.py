"""Taking sources and words away at random, so that training looks at every source and word."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from moemoe_jax.data.config import SourceConfig
from moemoe_jax.data.hide import folded_words, tells
from moemoe_jax.data.questions import Example


def drop_sources(
    sources: Mapping[str, np.ndarray], rng: np.random.Generator, configs: Sequence[SourceConfig]
) -> dict[str, np.ndarray]:
    """Returns what is left of a product's sources, at least one of them.

    Args:
      sources: what the product has, by name.
      rng: decides.
      configs: with the probability of each source, `dropout`.
    """
    probability = {config.name: config.dropout for config in configs}
    keep = rng.random(len(sources)) >= [probability[name] for name in sources]
    if not keep.any():
        keep[rng.integers(len(sources))] = True
    return {name: value for (name, value), kept in zip(sources.items(), keep, strict=True) if kept}


def told_questions(text: str, examples: Iterable[Example]) -> frozenset[str]:
    """Returns the questions whose answer, or one of whose answers, a text names."""
    words = folded_words(text)
    return frozenset(
        example.question
        for example in examples
        if any(tells(words, answer) for answer in example.answers or ())
    )


def drop_words(text: str, rng: np.random.Generator, probability: float) -> str:
    """Leaves out words of a text, each with the same probability, but never all of them."""
    words = text.split()
    keep = rng.random(len(words)) >= probability
    if words and not keep.any():
        keep[rng.integers(len(words))] = True
    return " ".join(word for word, kept in zip(words, keep, strict=True) if kept)
