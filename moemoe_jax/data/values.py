"""What stands for a text in a record: the text itself, or a number as it is written."""

from decimal import Decimal
import math
from typing import Any

from moemoe_jax.data.image_paths import RecordError

_NUMBER = int | float | Decimal  # Parquet has decimals as well
_KINDS = {dict: "object", list: "list", str: "text", bool: "true/false", type(None): "null"}


def kind_of(value: Any) -> str:
    """How a message calls what a value is."""
    return _KINDS.get(type(value), "number" if isinstance(value, _NUMBER) else "value")


def text_of(value: Any, what: str) -> str:
    """A text, made of characters alone.

    Raises:
      RecordError: `what` is none.
    """
    if not isinstance(value, str):
        raise RecordError(f"wrong type: {what} is a {kind_of(value)}, not a text")
    if not value.isascii():  # half of a surrogate pair is legal in JSON, but is no character
        value = value.encode("utf-8", "replace").decode("utf-8")
    return value


def text_or_number(value: Any, what: str) -> str:
    """A text, or a number as Python writes it: 2012 is "2012", 2.0 is "2.0".

    Raises:
      RecordError: `what` is neither, or a number that is not finite.
    """
    if isinstance(value, _NUMBER) and not isinstance(value, bool):
        if not math.isfinite(value):  # how pandas writes what is missing
            raise RecordError(f"wrong value: {what} is {value}; leave it out where it is not known")
        return str(value)
    return text_of(value, what)
