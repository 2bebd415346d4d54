"""Resources as objects of the API, there and back, and the merge patch that leads from one to another.

What an older program does not know it leaves alone: patches carry only what changed. Fields that it does not know
inside a list would be lost by that, so such an object is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from agent.errors import FailedPrecondition, InvalidArgument
from agent.model import Meta, Resource
from agent.store import documents
from agent.store.kubernetes import times
from agent.store.kubernetes.kinds import API_VERSION, FINALIZER, KINDS, MANAGER
from agent.store.kubernetes.shapes import Member, Shape, members

Json = dict[str, Any]

_INTEGER_BITS = 63
"""The API's integers are signed and have 64 bits."""


@dataclass(frozen=True, slots=True)
class Held:
    """An object as the API last said it: the resource, and what only the API has a use for."""

    resource: Resource
    uid: str
    finalizers: tuple[str, ...]
    is_tracked: bool = False
    """Whether the API keeps for each field who wrote it, and knows of nobody but us (metadata.managedFields)."""

    @property
    def version(self) -> int:
        return self.resource.meta.version


def part(resource: Resource, name: str) -> Json:
    """`spec` or `status` as the API has it. Raises InvalidArgument for what it cannot hold."""
    value = getattr(resource, name)
    try:
        return _encode_members(value)
    except OverflowError as error:
        raise InvalidArgument(
            f"{type(resource).__name__} {resource.meta.name!r}", f"cannot be stored: {error}"
        ) from error


def new_object(resource: Resource) -> Json:
    """What is sent to create `resource`; the API takes the status only afterwards."""
    kind = KINDS[type(resource).__name__]
    metadata: Json = {"name": resource.meta.name}
    if kind.has_data or resource.meta.deleting:
        metadata["finalizers"] = [FINALIZER]
    return {"apiVersion": API_VERSION, "kind": kind.name, "metadata": metadata, "spec": part(resource, "spec")}


def check(resource: Resource) -> None:
    """Raises InvalidArgument for content that could not be read back."""
    documents.encode(resource)


def read(kind: str, item: Mapping[str, Any]) -> Held:
    """An object the API sent. Raises FailedPrecondition for one this program does not understand."""
    metadata = item["metadata"]
    name = str(metadata["name"])
    meta = Meta(
        name=name,
        version=int(metadata["resourceVersion"]),
        created_at=times.from_text(metadata["creationTimestamp"]) if "creationTimestamp" in metadata else 0.0,
        deleting="deletionTimestamp" in metadata,
        generation=int(metadata.get("generation", 0)),
        held_by=tuple(str(each) for each in metadata.get("finalizers", ()) if each != FINALIZER),
    )
    of = KINDS[kind].type
    lost: list[str] = []
    parts = {member.name: member for member in members(of)}
    try:
        spec = _decode_members(item.get("spec") or {}, parts["spec"].shape, "spec", lost)
        status = _decode_members(item.get("status") or {}, parts["status"].shape, "status", lost)
        if lost:
            raise ValueError(f"fields this version does not know: {', '.join(sorted(lost))}")
        resource: Resource = of(
            meta,
            msgspec.convert(spec, parts["spec"].shape.of),
            msgspec.convert(status, parts["status"].shape.of),
        )
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise FailedPrecondition(f"{kind} {name!r} of the cluster is not understood: {error}") from error
    return Held(
        resource, str(metadata.get("uid", "")), tuple(metadata.get("finalizers", ())), is_tracked=_is_tracked(metadata)
    )


def _is_tracked(metadata: Mapping[str, Any]) -> bool:
    managers = metadata.get("managedFields") or ()
    return bool(managers) and all(each.get("manager") == MANAGER for each in managers)


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Json:
    """The JSON merge patch (RFC 7386) that leads from `before` to `after`; lists are replaced as a whole."""
    patch: Json = dict.fromkeys(before.keys() - after.keys())
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            inner = merge_patch(old, value)
            if inner:
                patch[key] = inner
        elif key not in before or value != old:
            patch[key] = value
    return patch


# --- there -----------------------------------------------------------------------------------------------------


def _encode_members(value: Any) -> Json:
    return {
        member.key: _encode(found, member.shape)
        for member in members(type(value))
        if not _is_left_out(member, found := getattr(value, member.name))
    }


def _is_left_out(member: Member, value: Any) -> bool:
    if value is None:
        return True
    if member.required or value != member.default:
        return False
    return member.shape.form in ("list", "map", "object", "time") or value == ""


def _encode(value: Any, shape: Shape) -> Any:
    if shape.form == "object":
        return _encode_members(value)
    if shape.form == "list" and shape.item is not None:
        return [_encode(each, shape.item) for each in value]
    if shape.form == "map":
        return dict(value)
    if shape.form == "time":
        return times.to_text(value)
    if shape.form == "integer" and int(value).bit_length() > _INTEGER_BITS:
        raise OverflowError(f"{value} does not fit into 64 bits")
    return str(value) if shape.form == "word" else value


# --- and back --------------------------------------------------------------------------------------------------


def _decode_members(found: Mapping[str, Any], shape: Shape, place: str, lost: list[str], inside: bool = False) -> Json:
    """The fields by their names in the model. `lost` gets the unknown ones that a patch would not preserve."""
    if shape.of is None:
        raise TypeError(f"{place} is no object")
    known = {member.key: member for member in members(shape.of)}
    if inside:
        lost.extend(f"{place}.{key}" for key in found.keys() - known.keys())
    return {
        known[key].name: _decode(value, known[key].shape, f"{place}.{key}", lost, inside)
        for key, value in found.items()
        if key in known
    }


def _decode(value: Any, shape: Shape, place: str, lost: list[str], inside: bool) -> Any:
    if shape.form == "object":
        return _decode_members(value, shape, place, lost, inside)
    if shape.form == "list" and shape.item is not None:
        return [_decode(each, shape.item, place, lost, True) for each in value]
    if shape.form == "map":
        return sorted(value.items())
    return times.from_text(value) if shape.form == "time" else value
