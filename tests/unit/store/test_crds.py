"""The custom resources' definitions: checked in, made from the model, and able to hold all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from agent.store.kubernetes import crds, schema
from agent.store.kubernetes.kinds import KINDS
from agent.store.kubernetes.shapes import camel

FOLDER = Path(__file__).parents[3] / "k8s" / "crds"


def test_the_files_are_those_made_from_the_model() -> None:
    found = {file.name: file.read_text() for file in FOLDER.iterdir()}
    assert found == dict(crds.rendered()), "run `make crds`"


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_field_of_the_model_has_a_type(kind: Any) -> None:
    document = yaml.safe_load((FOLDER / f"{kind.plural}.yaml").read_text())
    (version,) = document["spec"]["versions"]
    hints = get_type_hints(kind.type)
    for part in ("spec", "status"):
        _compare(hints[part], version["schema"]["openAPIV3Schema"]["properties"][part], part)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_field_is_explained(kind: Any) -> None:
    """By `kubectl explain`."""
    assert list(_unexplained(schema.of_resource(kind.type), kind.name)) == []


def _unexplained(of: dict[str, Any], place: str) -> Iterator[str]:
    for key, value in of.get("properties", {}).items():
        if not value.get("description") and key != "metadata":  # which the API server describes
            yield f"{place}.{key}"
        yield from _unexplained(value, f"{place}.{key}")
        yield from _unexplained(value.get("items", {}), f"{place}.{key}[]")


def _compare(of: Any, found: dict[str, Any], place: str) -> None:
    hints = get_type_hints(of)
    assert list(found["properties"]) == [camel(field.name) for field in fields(of)], place
    for field in fields(of):
        value = found["properties"][camel(field.name)]
        assert value["type"] in {"string", "integer", "boolean", "array", "object"}
        for nested in _dataclasses(hints[field.name]):
            inner = value.get("items", value)
            _compare(nested, inner, f"{place}.{field.name}")


def _dataclasses(hint: Any) -> Iterator[Any]:
    if is_dataclass(hint):
        yield hint
    for argument in get_args(hint):
        yield from _dataclasses(argument)
