"""What a tensor of a file is called in a model, from one table, in both directions.

A `TensorMap` is a table of rules "source name -> target name, transform" with letters in braces for
numbers:

    Rule("encoder.block.{i}.layer.0.SelfAttention.q.weight",
         "encoder/stack/{i}/self_attention/query/kernel", KERNEL)

The first part of a target is a role ("encoder"), which stands for one or several parts of a model:
MoEMoE starts its question encoder and its context encoder from one encoder. Targets are slots (see
`slots`). The files that describe an architecture hold nothing but such a table.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import dataclasses
import functools
import re
from typing import NamedTuple

import numpy as np

Roles = Mapping[str, Sequence[str]]


class Transform(NamedTuple):
    """How an array of a file becomes one of ours: its axes, in our order; None keeps them."""

    axes: tuple[int, ...] | None = None

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Ours of theirs."""
        return array if self.axes is None else np.transpose(array, self.axes)

    def inverse(self, array: np.ndarray) -> np.ndarray:
        """Theirs of ours."""
        return array if self.axes is None else np.transpose(array, np.argsort(self.axes))

    def shape(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """The shape of ours; None where theirs has another number of axes."""
        if self.axes is None:
            return tuple(shape)
        return tuple(shape[a] for a in self.axes) if len(shape) == len(self.axes) else None

    def inverse_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of theirs."""
        return tuple(shape) if self.axes is None else tuple(shape[a] for a in np.argsort(self.axes))


SAME = Transform()
KERNEL = Transform((1, 0))  # a torch Linear's weight [out, in] is our kernel [in, out]
CONVOLUTION = Transform((2, 3, 1, 0))  # [out, in, height, width] is [height, width, in, out]


class Rule(NamedTuple):
    """One row of a map: both names are patterns, with a letter in braces for each number."""

    source: str
    target: str
    transform: Transform = SAME


@functools.cache
def _regex(pattern: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", pattern)
    text = "".join(
        rf"(?P<{p}>0|[1-9][0-9]{{0,5}})" if i % 2 else re.escape(p) for i, p in enumerate(parts)
    )
    return re.compile(text, re.ASCII)


def match(pattern: str, name: str) -> dict[str, str] | None:
    """The numbers in a name, by the letters of the pattern; None where it does not fit."""
    found = _regex(pattern).fullmatch(name)
    return None if found is None else found.groupdict()


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """The names of an architecture.

    Attributes:
      rules: the table. A source may stand in several rows.
      roles: the parts of the model that each role stands for; rows of a role without a part do not
        count.
      same: (alias, name) pairs of sources that must hold the same values where both are there; the
        name may be missing if the alias is there.
      ignored: patterns of sources that hold nothing a model needs.
      prefix: what stands in front of every source name of a file.
    """

    rules: tuple[Rule, ...]
    roles: Roles
    same: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    prefix: str = ""

    @functools.cached_property
    def rows(self) -> tuple[Rule, ...]:
        """The rules with roles replaced by parts and the prefix in place: one target a row."""
        rows = []
        for rule in self.rules:
            role, slash, rest = rule.target.partition("/")
            for part in self.roles.get(role, ()):
                target = f"{part}{slash if part else ''}{rest}"
                rows.append(Rule(self.prefix + rule.source, target, rule.transform))
        return tuple(rows)

    def targets(self, source: str) -> Iterator[tuple[Rule, str]]:
        """The targets of a source, with the rows that say so."""
        for row in self.rows:
            numbers = match(row.source, source)
            if numbers is not None:
                yield row, row.target.format(**numbers)

    def source(self, target: str) -> tuple[Rule, str] | None:
        """The source of a target, with the row that says so; None where it has none."""
        for row in self.rows:
            numbers = match(row.target, target)
            if numbers is not None:
                return row, row.source.format(**numbers)
        return None

    def is_ignored(self, source: str) -> bool:
        """Whether a source is on the list of those that are not needed."""
        return any(match(pattern, source) is not None for pattern in self.ignored)


def expected_sources(tensor_map: TensorMap, targets: Collection[str]) -> set[str]:
    """The sources that would fill these targets."""
    found = (tensor_map.source(target) for target in targets)
    return {pair[1] for pair in found if pair is not None}
