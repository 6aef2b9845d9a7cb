"""ConfigDicts at the edge, frozen dataclasses inside: one conversion, both ways.

A dataclass is the schema and holds the defaults. `to_config_dict` unfolds it for flags to override;
`from_mapping` builds it back and refuses what it does not know, naming the nearest key.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import dataclasses
import difflib
import math
import shlex
import types
import typing
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from moemoe_jax.errors import UserError
from moemoe_jax.files import shown

T = TypeVar("T")

# What a setting of each type takes.
WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: 'a tuple, such as "(1, 2)"',
    Mapping: "names with values",
}


def to_config_dict(value: Any, omit: frozenset[str] = frozenset(), path: str = ""):
    """Unfolds a dataclass instance into a ConfigDict.

    A tuple of dataclasses that have a `name` becomes a ConfigDict by name, so that one of them can
    be overridden: `--config.data.sources.text.fields=…`.

    Args:
      value: a dataclass instance.
      omit: dotted paths of fields that are derived and not the user's to set.
      path: of `value` in the tree.
    """
    result = ml_collections.ConfigDict()
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        where = _join(path, field.name)
        if where in omit:
            continue
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            result[field.name] = to_config_dict(item, omit, where)
        elif _item_dataclass(hints[field.name]):
            named = ml_collections.ConfigDict()
            for part in item:
                entry = to_config_dict(part)
                del entry["name"]
                named[part.name] = entry
            result[field.name] = named
        elif item is None:
            result[field.name] = config_dict.placeholder(_optional(hints[field.name]))
        elif isinstance(item, Mapping):
            result[field.name] = ml_collections.ConfigDict(dict(item))
        else:
            result[field.name] = item
    return result


def from_mapping(kind: type[T], mapping: Mapping[str, Any], path: str = "", **derived) -> T:
    """Builds a dataclass from a mapping (a ConfigDict, or what JSON gave).

    Args:
      kind: the dataclass.
      mapping: values by field name; missing ones keep their defaults.
      path: of this mapping in the config, for messages.
      **derived: fields that the caller computes.

    Raises:
      UserError: for an unknown key (naming the nearest), a value of the wrong type, or one that the
        dataclass itself refuses; names the place.
    """
    _check_group(mapping, path)
    hints = typing.get_type_hints(kind)
    values = {}
    for key in mapping:
        if key not in hints:
            raise UserError(f"{_join(path, key)} does not exist{nearest(key, hints)}")
        values[key] = _convert(mapping[key], hints[key], _join(path, key))
    values |= derived
    try:
        return kind(**values)
    except ValueError as error:
        # What stands in `nn` knows no place among the settings.
        text = str(error)
        raise UserError(text if path in text else f"{path}: {text}") from None


def _convert(value: Any, hint: Any, path: str) -> Any:
    """Builds a field's value: a group of settings, groups by name, or a plain value."""
    item = _item_dataclass(hint)
    if not item and not dataclasses.is_dataclass(hint):
        return _plain(value, hint, path)
    if not item and dataclasses.is_dataclass(value):
        return value
    _check_group(value, path)
    if item:
        return tuple(from_mapping(item, v, _join(path, k), name=k) for k, v in value.items())
    return from_mapping(hint, value, path)


def _check_group(value: Any, path: str) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is {value!r}, but it is a group of settings")


def _plain(value: Any, hint: Any, path: str) -> Any:
    if value is None:
        if type(None) not in typing.get_args(hint):
            raise UserError(f"{path} has no value")
        return None
    hint = _optional(hint)
    kind = typing.get_origin(hint) or hint
    if kind is tuple:
        if isinstance(value, str) or not isinstance(value, (tuple, list)):
            raise UserError(f"{path} is {value!r}; give {WORDS[tuple]}")
        inner, part = typing.get_args(hint), f"a value in {path}"
        return tuple(_convert(v, inner[0], part) for v in value) if inner else tuple(value)
    if not isinstance(kind, type):
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path} is {value}; give a finite number")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{path} is {value!r}; give {WORDS[kind]}")
    return dict(value) if issubclass(kind, Mapping) else value


def _item_dataclass(hint: Any) -> type | None:
    """The dataclass of a `tuple[SomeDataclass, ...]`, or None."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(arguments[0]):
        return arguments[0]
    return None


def _optional(hint: Any) -> Any:
    """`X` of `X | None`; any other hint as it is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def as_flags(config: ml_collections.ConfigDict, path: str = "config") -> Iterator[str]:
    """Every setting with its value, as a shell takes the flag; what has none, as a comment."""
    for key, value in config.items():
        where = f"{path}.{key}"
        if isinstance(value, ml_collections.ConfigDict):
            yield from as_flags(value, where)
        elif value is None:
            yield f"# --{where} is not set"
        else:
            yield shlex.quote(f"--{where}={value}")


def nearest(key: str, known: Collection[str]) -> str:
    """The end of a message about an unknown key: the known one nearest to it, or all of them."""
    if not known:
        return "; that group is empty: a config file may fill it, a flag cannot"
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else f"; the keys are {', '.join(known)}"


def choose(file: str, name: str, known: Collection[str]) -> str:
    """Returns a part of a config file's argument, if it is one that the file knows.

    Args:
      file: the config file, for the message.
      name: what stands behind the file's name and a colon, or a part of it.
      known: the names that there are.

    Raises:
      UserError: naming them all.
    """
    if name not in known:
        raise UserError(f"{file} does not know {name!r}; use one of {', '.join(known)}")
    return name


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields what differs in two trees of settings: the path, the old value, the new one."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), _join(path, key))
    elif old != new:
        yield path, old, new


def differences_text(different: Sequence[tuple[str, Any, Any]]) -> str:
    """The first of some `differences`, as part of a message."""
    each = []
    for path, before, now in different[:3]:
        pair = f"{shown(before)} there, {shown(now)} now"
        cut = shown(before) == shown(now)  # long values are, and may look alike then
        each.append(f"{path}: {'what is too long to show' if cut else pair}")
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return ", ".join(each) + more


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
