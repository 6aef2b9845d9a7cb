"""Reading a config.json value by value: each must be of the right kind, and implemented."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path
from typing import Any, NoReturn

from moemoe_jax.errors import UserError
from moemoe_jax.files import shown


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a file.

    Attributes:
      path: of the file, for messages.
      values: what it holds.
    """

    path: Path
    values: Mapping[str, Any]

    def refuse(self, key: str, instead: str) -> NoReturn:
        """Raises the error about one value: what it is, and what it would have to be."""
        raise UserError(f"{self.path} has {key} {shown(self.values.get(key))}; {instead}")

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number from `least` on; the default where the file has none or null."""
        value = self._get(key, default)
        if type(value) is not int or not least <= value < 2**31:
            self.refuse(key, f"it must be a whole number from {least} on")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number that is not negative."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            self.refuse(key, "it must be a number that is not negative")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or False."""
        value = self._get(key, default)
        if type(value) is not bool:
            self.refuse(key, "it must be true or false")
        return value

    def one_of(self, key: str, allowed: Sequence[Any], default: Any) -> Any:
        """One of the values that are implemented."""
        value = self._get(key, default)
        if type(value) is bool or value not in allowed:
            self.refuse(key, f"implemented: {', '.join(map(str, allowed))}")
        return value

    def fixed(self, **wanted: Any) -> None:
        """Refuses a value other than the one that is implemented; a missing one is that one."""
        for key, value in wanted.items():
            found = self._get(key, value)
            if found != value or type(found) is not type(value):
                self.refuse(key, f"only {value!r} is implemented")

    def side(self, key: str, default: int | None = None) -> int:
        """A side of a square: a number, or a list of two equal ones."""
        value = self._get(key, default)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if type(value) is not int or not 1 <= value < 2**16:
            self.refuse(key, "it must be the side of a square, a whole number of pixels or patches")
        return value

    def integers(self, key: str, default: Sequence[int], *, least: int = 1) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self._get(key, list(default))
        if not isinstance(value, list) or not value or any(type(n) is not int for n in value):
            self.refuse(key, "it must be a list of whole numbers")
        if min(value) < least or max(value) >= 2**31:
            self.refuse(key, f"its numbers must be from {least} on")
        return tuple(value)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise UserError(f"{self.path} has no {key}: save the model again")
        return value
