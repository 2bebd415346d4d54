"""What is wrong with settings, as one sentence for a person: the field, the problem, and what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from pydantic import AliasChoices, BaseModel
from pydantic_core import ErrorDetails

from agent.errors import InvalidArgument, shorten

_TYPE = re.compile(r" for <class '[^']*'>")
"""pydantic's way to say what the field's name says."""


def explained(
    model: type[BaseModel], details: list[ErrorDetails], field: str, items: Mapping[str, type[BaseModel]]
) -> InvalidArgument:
    """The first problem, with the places of the others. `items`: what the fields that are lists consist of."""
    first = details[0]
    place = ".".join(str(part) for part in first["loc"]) or field or "settings"
    problem = _TYPE.sub("", first["msg"].removeprefix("Value error, "))
    if first["type"] == "extra_forbidden":
        problem = "unknown key"
    elif "input" in first and isinstance(first["input"], str | int | float) and first["type"] != "value_error":
        problem += f", not {shorten(repr(first['input']))}"
    # A default that is made from other fields cannot be made when one of those is wrong: nothing to correct there.
    real = [detail for detail in details[1:] if detail["type"] != "default_factory_not_called"]
    others = sorted({".".join(str(part) for part in detail["loc"]) for detail in real} - {place, ""})
    if others:
        problem += f" (also wrong: {', '.join(others[:10])})"
    return InvalidArgument(place, problem, _remedy(model, first, items))


def _remedy(model: type[BaseModel], detail: ErrorDetails, items: Mapping[str, type[BaseModel]]) -> str:
    """What would be right: the known keys for an unknown one, else the field's description."""
    section, description = model, ""
    names = [part for part in detail["loc"] if isinstance(part, str)]
    for name in names:
        found = next((f for key, f in section.model_fields.items() if name in (key, _alias(f.validation_alias))), None)
        if found is None:
            known = sorted(section.model_fields)
            close = difflib.get_close_matches(name, known, 1)
            return f"did you mean {close[0]}?" if close else f"known keys here: {', '.join(known)}"
        description = found.description or ""
        inner = items.get(name, found.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            section = inner
    return description.rstrip(".") or "see docs/configuration.md"


def _alias(alias: object) -> str | None:
    """The first of a field's names in the file, where it differs from the field's own."""
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else None
