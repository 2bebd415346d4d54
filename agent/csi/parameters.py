"""The StorageClass parameters: which there are, what they accept, what they mean when absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from agent.errors import InvalidArgument, shorten
from agent.host import filesystem
from agent.model import Frontend, Provisioning, Tier

FS_TYPES = filesystem.SUPPORTED
"""Filesystems we can make, check and grow; the first one is the default."""

FS_TYPE_KEY = "csi.storage.k8s.io/fstype"
_IGNORED = frozenset({"csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pv/name"})
"""What csi-provisioner adds with --extra-create-metadata: facts about the claim, no wishes."""

_SNAPSHOTTER_PREFIX = "csi.storage.k8s.io/"
"""Of what csi-snapshotter adds with --extra-create-metadata: volumesnapshot/name, volumesnapshotcontent/name, ..."""

_KEYS = ("tier", "provisioning", "replicas", "frontend", FS_TYPE_KEY)

_E = TypeVar("_E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class VolumeParameters:
    """Parsed parameters. `given`: the recognised ones as they came, sorted; a repeated call is compared with them."""

    tier: Tier
    provisioning: Provisioning
    replica_count: int
    frontend: Frontend
    fs_type: str
    given: tuple[tuple[str, str], ...]


def parse(parameters: Mapping[str, str]) -> VolumeParameters:
    """Reads StorageClass parameters. Raises InvalidArgument naming the parameter and what is accepted."""
    for key in sorted(parameters):
        if key not in _KEYS and key not in _IGNORED:
            raise InvalidArgument(f"parameters[{shorten(key)!r}]", "unknown parameter", f"accepted: {', '.join(_KEYS)}")
    return VolumeParameters(
        tier=_one_of(Tier, parameters, "tier", Tier.NVME),
        provisioning=_one_of(Provisioning, parameters, "provisioning", Provisioning.THIN),
        replica_count=_replica_count(parameters.get("replicas", "1")),
        frontend=_one_of(Frontend, parameters, "frontend", Frontend.NVME_TCP),
        fs_type=fs_type(f"parameters[{FS_TYPE_KEY!r}]", parameters.get(FS_TYPE_KEY, "")),
        given=tuple(sorted((key, value) for key, value in parameters.items() if key not in _IGNORED)),
    )


def refuse_any(parameters: Mapping[str, str]) -> None:
    """Of a VolumeSnapshotClass: there are none, but for the facts that csi-snapshotter adds."""
    for key in sorted(parameters):
        if not key.startswith(_SNAPSHOTTER_PREFIX):
            raise InvalidArgument(
                f"parameters[{shorten(key)!r}]", "unknown parameter", "accepted: none; snapshots have no parameters"
            )


def fs_type(field: str, value: str) -> str:
    """A filesystem type from a capability or parameter; empty is no preference. Raises InvalidArgument."""
    if value and value not in FS_TYPES:
        raise InvalidArgument(field, f"{shorten(value)!r} is not supported", f"accepted: {', '.join(FS_TYPES)}")
    return value


def _one_of(kind: type[_E], parameters: Mapping[str, str], key: str, default: _E) -> _E:
    value = parameters.get(key)
    if value is None:
        return default
    try:
        return kind(value)
    except ValueError:
        accepted = ", ".join(kind)
        raise InvalidArgument(
            f"parameters[{key!r}]", f"{shorten(value)!r} is not supported", f"accepted: {accepted}"
        ) from None


def _replica_count(value: str) -> int:
    if value != "1":
        raise InvalidArgument(
            "parameters['replicas']", f"{shorten(value)!r} is not supported", 'set "1": volumes have one replica so far'
        )
    return 1
