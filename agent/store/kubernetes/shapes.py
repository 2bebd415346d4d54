"""How the types of the model look in the API: what the codec and the schemas are both made from.

Names are camelCase, times are RFC 3339, pairs of names and values are maps. Absent is what has the default and is
empty, so that objects stay readable; numbers, booleans and words are always written.
"""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any, Literal

Form = Literal["text", "integer", "boolean", "time", "word", "list", "map", "object"]


@dataclass(frozen=True, slots=True)
class Shape:
    """One value. `item` is that of a list's items, `of` the enumeration of a word or the dataclass of an object."""

    form: Form
    item: Shape | None = None
    of: type[Any] | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One field of a dataclass: `name` in the model, `key` in the API."""

    name: str
    key: str
    shape: Shape
    required: bool
    default: Any


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


_MEMBERS: dict[type[Any], tuple[Member, ...]] = {}


def members(of: type[Any]) -> tuple[Member, ...]:
    """The fields of a dataclass of the model, in order."""
    if of not in _MEMBERS:
        _MEMBERS[of] = _members(of)
    return _MEMBERS[of]


def _members(of: type[Any]) -> tuple[Member, ...]:
    hints = typing.get_type_hints(of)
    return tuple(
        Member(field.name, camel(field.name), _shape(hints[field.name]), _is_required(field), _default(field))
        for field in fields(of)
    )


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _shape(hint: Any) -> Shape:
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        (real,) = (argument for argument in arguments if argument is not types.NoneType)
        return _shape(real)
    if typing.get_origin(hint) is tuple:
        if arguments[0] == tuple[str, str]:
            return Shape("map", item=Shape("text"))
        return Shape("list", item=_shape(arguments[0]))
    return _plain(hint)


def _plain(hint: type[Any]) -> Shape:
    plain: dict[type[Any], Form] = {str: "text", int: "integer", bool: "boolean", float: "time"}
    if hint in plain:
        return Shape(plain[hint])
    if is_dataclass(hint):
        return Shape("object", of=hint)
    if issubclass(hint, StrEnum):
        return Shape("word", of=hint)
    raise TypeError(f"{hint!r} has no form in the API: give it one here")
