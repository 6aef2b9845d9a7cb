"""Rows of equal layers told as one, their numbers in braces, as a shell would expand them."""

from collections.abc import Hashable, Iterable
import itertools
import re
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

_LAST_NUMBER = re.compile(r"((?:.*/)?)(\d+)((?:/.*)?)")


def fold(rows: Iterable[tuple[str, T]]) -> list[tuple[str, int, T]]:
    """Joins rows that tell the same, of paths that differ in their last number alone.

    `blocks/0/scale`, `blocks/1/scale` and `blocks/2/scale` become `blocks/{0..2}/scale`.

    Args:
      rows: a path and what is told of it.

    Returns:
      For each that is left: path, how many rows it stands for, and what is told; in the order in
      which the first of them came.
    """
    found: dict[tuple[str, str, T], list[str]] = {}
    for path, told in rows:
        match = _LAST_NUMBER.fullmatch(path)
        before, number, after = match.groups() if match else (path, "", "")
        found.setdefault((before, after, told), []).append(number)
    return [
        (before + _braces(numbers) + after, len(numbers), told)
        for (before, after, told), numbers in found.items()
    ]


def _braces(numbers: list[str]) -> str:
    if len(numbers) == 1:
        return numbers[0]
    values = sorted(map(int, numbers))
    first, step = values[0], values[1] - values[0]
    if len(values) > 2 and all(b - a == step for a, b in itertools.pairwise(values)):
        return f"{{{first}..{values[-1]}{f'..{step}' if step > 1 else ''}}}"
    return "{" + ",".join(map(str, values)) + "}"
