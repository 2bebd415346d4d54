"""The StorageClass parameters: which there are, what they accept, what they mean when absent."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from agent.csi import qos
from agent.errors import InvalidArgument, shorten
from agent.model import ConnectOptions, Frontend, Provisioning, Tier, filesystems
from agent.volumes.rules.requests import QosChange

FS_TYPES = filesystems.SUPPORTED
"""Filesystems we can make, check and grow; the first one is the default."""

FS_TYPE_KEY = "csi.storage.k8s.io/fstype"
MKFS_KEY = "mkfsOptions"
_MKFS_LENGTH_MAX = 1024
_IGNORED = frozenset({"csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pv/name"})
"""What csi-provisioner adds with --extra-create-metadata: facts about the claim, no wishes."""

_SNAPSHOTTER_PREFIX = "csi.storage.k8s.io/"
"""Of what csi-snapshotter adds with --extra-create-metadata: volumesnapshot/name, volumesnapshotcontent/name, ..."""

_CONNECT: Mapping[str, tuple[str, range]] = {
    "ctrlLossTimeout": ("loss_timeout_s", range(-1, 86_401)),
    "reconnectDelay": ("reconnect_delay_s", range(1, 3601)),
    "keepAliveTimeout": ("keep_alive_s", range(1, 3601)),
    "ioQueues": ("io_queues", range(1, 129)),
}
"""Options of the kernel's NVMe/TCP host by parameter: the field of ConnectOptions, and its values."""

_CONNECT_DEFAULTS = ConnectOptions()

_KEYS = ("tier", "provisioning", "replicas", "frontend", FS_TYPE_KEY, MKFS_KEY, *qos.KEYS, *_CONNECT)
_INTEGER = re.compile(r"-?[0-9]{1,9}")

_E = TypeVar("_E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class VolumeParameters:
    """Parsed parameters. `given`: the recognised ones as they came, sorted; a repeated call is compared with them."""

    tier: Tier
    provisioning: Provisioning
    replica_count: int
    frontend: Frontend
    fs_type: str
    mkfs_options: tuple[str, ...]
    qos: QosChange
    connect: ConnectOptions
    given: tuple[tuple[str, str], ...]


def parse(parameters: Mapping[str, str]) -> VolumeParameters:
    """Reads StorageClass parameters. Raises InvalidArgument naming the parameter and what is accepted."""
    for key in sorted(parameters):
        if key not in _KEYS and key not in _IGNORED:
            raise qos.unknown("parameters", key, _KEYS)
    frontend = _one_of(Frontend, parameters, "frontend", Frontend.NVME_TCP)
    return VolumeParameters(
        tier=_one_of(Tier, parameters, "tier", Tier.NVME),
        provisioning=_one_of(Provisioning, parameters, "provisioning", Provisioning.THIN),
        replica_count=_replica_count(parameters.get("replicas", "1")),
        frontend=frontend,
        fs_type=fs_type(_field(FS_TYPE_KEY), parameters.get(FS_TYPE_KEY, "")),
        mkfs_options=mkfs_options(parameters),
        qos=qos.change(parameters),
        connect=_connect_options(parameters, frontend),
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


def mkfs_options(parameters: Mapping[str, str]) -> tuple[str, ...]:
    """The words of `mkfsOptions`, split as a shell would. Raises InvalidArgument for quotes that do not end."""
    value = parameters.get(MKFS_KEY, "")
    if not value:
        return ()
    if len(value) > _MKFS_LENGTH_MAX:
        raise InvalidArgument(_field(MKFS_KEY), "too long", f"use at most {_MKFS_LENGTH_MAX} characters")
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise InvalidArgument(_field(MKFS_KEY), str(error).lower(), "quote as in a shell") from None


def check_mkfs_options(options: tuple[str, ...], fs_types: Iterable[str]) -> None:
    """Raises InvalidArgument unless mkfs of each of `fs_types` may be given `options`."""
    for each in fs_types:
        try:
            filesystems.check_mkfs_options(each, options)
        except InvalidArgument as error:
            raise InvalidArgument(_field(MKFS_KEY), f"{error.problem} for {each}", error.remedy) from None


def _field(key: str) -> str:
    return f"parameters[{key!r}]"


def _one_of(kind: type[_E], parameters: Mapping[str, str], key: str, default: _E) -> _E:
    value = parameters.get(key)
    if value is None:
        return default
    try:
        return kind(value)
    except ValueError:
        accepted = ", ".join(kind)
        raise InvalidArgument(_field(key), f"{shorten(value)!r} is not supported", f"accepted: {accepted}") from None


def _replica_count(value: str) -> int:
    if value != "1":
        raise InvalidArgument(
            _field("replicas"), f"{shorten(value)!r} is not supported", 'set "1": volumes have one replica so far'
        )
    return 1


def _connect_options(parameters: Mapping[str, str], frontend: Frontend) -> ConnectOptions:
    given = [key for key in _CONNECT if key in parameters]
    if not given:
        return _CONNECT_DEFAULTS
    if frontend is not Frontend.NVME_TCP:
        raise InvalidArgument(_field(given[0]), f"is no option of the frontend {frontend}", "leave it out")
    options = ConnectOptions(**{_CONNECT[key][0]: _integer(key, parameters[key]) for key in given})
    if 0 <= options.loss_timeout_s < options.reconnect_delay_s:
        raise InvalidArgument(
            _field("ctrlLossTimeout"),
            f"{options.loss_timeout_s} s are over before the first attempt to reconnect",
            f"use at least reconnectDelay ({options.reconnect_delay_s})",
        )
    return options


def _integer(key: str, value: str) -> int:
    accepted = _CONNECT[key][1]
    number = int(value) if _INTEGER.fullmatch(value) else None
    if number is None or number not in accepted:
        never = "; -1: for ever" if accepted.start < 0 else ""
        what = f"whole numbers from {max(accepted.start, 1)} to {accepted.stop - 1}{never}"
        raise InvalidArgument(_field(key), f"{shorten(value)!r} is not supported", f"accepted: {what}")
    return number
