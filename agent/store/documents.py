"""Resources as JSON documents: what is written can be read again, what cannot be understood is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agent.errors import FailedPrecondition, InvalidArgument
from agent.model import Disk, Meta, Resource, Snapshot, SnapshotGroup, StorageNode, Volume

KINDS: Mapping[str, type[Resource]] = {
    kind.__name__: kind for kind in (StorageNode, Disk, Volume, Snapshot, SnapshotGroup)
}

_ENCODER = msgspec.json.Encoder()
_DECODERS: Mapping[str, msgspec.json.Decoder[Any]] = {name: msgspec.json.Decoder(kind) for name, kind in KINDS.items()}


def encode(resource: Resource) -> bytes:
    """The document of `resource`. The version in it is that of the state it was made from: the store keeps its own.

    Raises InvalidArgument for content that could not be read back (a wrong type, text that is not Unicode): one such
    document would make every later start fail.
    """
    kind = type(resource).__name__
    try:
        document = _ENCODER.encode(resource)
        _DECODERS[kind].decode(document)
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError, TypeError) as error:
        raise InvalidArgument(f"{kind} {resource.meta.name!r}", f"cannot be stored: {error}") from error
    return document


def decode(kind: str, name: str, version: int, document: bytes) -> Resource:
    """The resource of a stored document. Raises FailedPrecondition for one this program does not understand.

    Fields it does not know are refused rather than ignored: the next update would silently lose them.
    """
    if kind not in KINDS:
        raise FailedPrecondition(f"{kind} {name!r} is of a kind this version does not know: use the newer one")
    try:
        resource: Resource = _DECODERS[kind].decode(document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"stored {kind} {name!r} is not understood: {error}") from error
    if _ENCODER.encode(resource) != document:
        unknown = _unknown_fields(msgspec.json.decode(document), msgspec.to_builtins(resource))
        if unknown:
            fields = ", ".join(sorted(unknown))
            raise FailedPrecondition(f"stored {kind} {name!r} has fields this version does not know: {fields}")
    return stamped(resource, version)


def stamped(resource: Resource, version: int) -> Resource:
    """`resource` with the version the store gave it. Every kind has these three parts (`replace` costs four times)."""
    meta = resource.meta
    made = Meta(meta.name, version, meta.created_at, meta.deleting)
    return type(resource)(made, resource.spec, resource.status)  # type: ignore[arg-type]  # of the same kind


def _unknown_fields(stored: Any, known: Any, place: str = "") -> set[str]:
    """Places of the fields in `stored` that `known`, the same document after decoding, has lost."""
    if isinstance(stored, dict) and isinstance(known, dict):
        lost = {f"{place}{key}" for key in stored.keys() - known.keys()}
        return lost.union(*(_unknown_fields(stored[k], known[k], f"{place}{k}.") for k in stored.keys() & known.keys()))
    if isinstance(stored, list) and isinstance(known, list | tuple):
        return set().union(*(_unknown_fields(a, b, place) for a, b in zip(stored, known, strict=True)))
    return set()
