"""From protobuf requests to domain values; whatever the specification forbids raises InvalidArgument or OutOfRange.

All of it happens before the domain is asked anything, so a malformed call for an unknown volume is INVALID_ARGUMENT,
not NOT_FOUND, and has no effect. Limits are those of CSI v1.12.0, "Size Limits" and the comments in csi.proto.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.csi.parameters import FS_TYPES, fs_type
from agent.csi.pb import csi_pb2 as csi
from agent.errors import InvalidArgument, OutOfRange, shorten
from agent.model import AccessMode, SourceKind, VolumeSource
from agent.model.filesystems import min_bytes
from agent.volumes.rules.modes import Block, Filesystem, VolumeMode

DEFAULT_SIZE_BYTES = 1 << 30
"""Size of a volume when the caller leaves it to us."""

MAX_SIZE_BYTES = 1 << 60
"""1 EiB: no pool comes near, and rounding it up to any cluster size still fits a signed 64-bit integer."""

_NAME_BYTES_MAX = 128
_PATH_BYTES_MAX = 4096
"""PATH_MAX of Linux, with its NUL."""
_MOUNT_FLAGS_BYTES_MAX = 4096
_FORBIDDEN_IN_NAMES = re.compile("[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]")
_ROUNDING = 1 << 20

_Mode = csi.VolumeCapability.AccessMode
_WithCapability = csi.ControllerPublishVolumeRequest | csi.NodeStageVolumeRequest | csi.NodePublishVolumeRequest


@dataclass(frozen=True, slots=True)
class Access:
    """One VolumeCapability: as what, by whom, and whether for reading only."""

    volume_mode: VolumeMode
    access_mode: AccessMode
    readonly: bool


_ACCESS_MODES: dict[int, tuple[AccessMode, bool]] = {
    _Mode.SINGLE_NODE_WRITER: (AccessMode.RWO, False),
    _Mode.SINGLE_NODE_MULTI_WRITER: (AccessMode.RWO, False),
    _Mode.SINGLE_NODE_SINGLE_WRITER: (AccessMode.RWOP, False),
    _Mode.SINGLE_NODE_READER_ONLY: (AccessMode.RWO, True),
    _Mode.MULTI_NODE_READER_ONLY: (AccessMode.ROX, True),
    _Mode.MULTI_NODE_SINGLE_WRITER: (AccessMode.ONE_WRITER, False),
    _Mode.MULTI_NODE_MULTI_WRITER: (AccessMode.RWX, False),
}


def required(field: str, value: str) -> str:
    """`value`, which may not be empty. Ids of any form pass: one that we never gave out is simply not found."""
    if not value:
        raise InvalidArgument(field, "missing", "set it")
    return value


def name(value: str) -> str:
    """The name of a new volume: 1 to 128 bytes without control characters (tab and line breaks are allowed)."""
    required("name", value)
    size = len(value.encode())
    if size > _NAME_BYTES_MAX:
        raise InvalidArgument("name", f"{size} bytes long", f"use at most {_NAME_BYTES_MAX} bytes")
    if found := _FORBIDDEN_IN_NAMES.search(value):
        raise InvalidArgument("name", f"has the control character U+{ord(found[0]):04X}", "leave it out")
    return value


def path(field: str, value: str) -> Path:
    """A path on this machine. Where it may lead is the node side's business."""
    required(field, value)
    if "\0" in value:
        raise InvalidArgument(field, "has a NUL character", "leave it out")
    if len(value.encode()) >= _PATH_BYTES_MAX:
        raise InvalidArgument(field, "too long", f"use less than {_PATH_BYTES_MAX} bytes")
    return Path(value)


def size_range(value: csi.CapacityRange) -> tuple[int, int]:
    """(required_bytes, limit_bytes) of a new volume; limit 0 is none. Neither given: 1 GiB."""
    least, limit = checked_range(value)
    if least:
        return least, limit
    if not limit or limit >= DEFAULT_SIZE_BYTES:
        return DEFAULT_SIZE_BYTES, limit
    return limit // _ROUNDING * _ROUNDING or limit, limit


def source(request: csi.CreateVolumeRequest) -> VolumeSource | None:
    """What the volume is to be made of; None: of nothing."""
    if not request.HasField("volume_content_source"):
        return None
    value = request.volume_content_source
    match value.WhichOneof("type"):
        case "snapshot":
            field = "volume_content_source.snapshot.snapshot_id"
            return VolumeSource(SourceKind.SNAPSHOT, required(field, value.snapshot.snapshot_id))
        case "volume":
            field = "volume_content_source.volume.volume_id"
            return VolumeSource(SourceKind.VOLUME, required(field, value.volume.volume_id))
    raise InvalidArgument("volume_content_source", "names neither a snapshot nor a volume", "set one, or leave it out")


def new_size(value: csi.CapacityRange) -> tuple[int, int]:
    """(required_bytes, limit_bytes) of an expansion, at least one of which has to be set."""
    least, limit = checked_range(value)
    if not least and not limit:
        raise InvalidArgument("capacity_range", "missing", "set required_bytes")
    return least, limit


def checked_range(value: csi.CapacityRange) -> tuple[int, int]:
    """(required_bytes, limit_bytes) as given, 0 for neither, if they make sense."""
    least, limit = value.required_bytes, value.limit_bytes
    for field, number in (("required_bytes", least), ("limit_bytes", limit)):
        if number < 0:
            raise InvalidArgument(f"capacity_range.{field}", f"{number} is negative", "use 0 for no preference")
    if limit and limit < least:
        raise InvalidArgument(
            "capacity_range.limit_bytes", f"{limit} is less than required_bytes ({least})", "raise it or leave it out"
        )
    if least > MAX_SIZE_BYTES:
        raise OutOfRange(f"capacity_range.required_bytes: {least} is more than the largest size ({MAX_SIZE_BYTES})")
    return least, limit


def capability(value: csi.VolumeCapability, field: str = "volume_capability") -> Access:
    """One capability, complete and supported."""
    kind = value.WhichOneof("access_type")
    if kind is None:
        raise InvalidArgument(f"{field}.access_type", "missing", "set mount or block")
    if not value.HasField("access_mode") or value.access_mode.mode == _Mode.UNKNOWN:
        raise InvalidArgument(f"{field}.access_mode", "missing", "set it")
    supported = _ACCESS_MODES.get(value.access_mode.mode)
    if supported is None:
        raise InvalidArgument(
            f"{field}.access_mode",
            f"{_mode_name(value.access_mode.mode)} is not supported",
            f"accepted: {', '.join(_mode_name(mode) for mode in _ACCESS_MODES)}",
        )
    access_mode, readonly = supported
    if access_mode.is_raw and kind != "block":
        raise InvalidArgument(
            f"{field}.access_mode",
            f"{_mode_name(value.access_mode.mode)} is for raw block volumes only: a filesystem knows one machine",
            "use access_type block (volumeMode: Block), or a single-node mode",
        )
    volume_mode = Block() if kind == "block" else _filesystem(value.mount, f"{field}.mount")
    return Access(volume_mode, access_mode, readonly)


def required_capability(request: _WithCapability) -> Access:
    """The capability of a request that must carry one."""
    if not request.HasField("volume_capability"):
        raise InvalidArgument("volume_capability", "missing", "set it")
    return capability(request.volume_capability)


def capabilities(values: Sequence[csi.VolumeCapability]) -> list[Access]:
    """All capabilities of a list that may not be empty."""
    if not values:
        raise InvalidArgument("volume_capabilities", "missing", "give at least one")
    return [capability(value, f"volume_capabilities[{index}]") for index, value in enumerate(values)]


def filesystems(values: Sequence[csi.VolumeCapability], preferred: str) -> list[str]:
    """The filesystems that capabilities ask for. `preferred`: where none is named."""
    return sorted({value.mount.fs_type or preferred or FS_TYPES[0] for value in values if value.HasField("mount")})


def room_for_filesystems(fs_types: Sequence[str], size_bytes: int) -> None:
    """OutOfRange for a new volume on which its filesystem could not be made."""
    for kind in fs_types:
        if size_bytes < (least := min_bytes(kind)):
            raise OutOfRange(
                f"capacity_range: {size_bytes} bytes are too few for {kind}, which needs {least} ({least >> 20} MiB)"
            )


def _filesystem(value: csi.VolumeCapability.MountVolume, field: str) -> Filesystem:
    if value.volume_mount_group:
        raise InvalidArgument(f"{field}.volume_mount_group", "not supported", "leave it out; kubelet sets fsGroup")
    if sum(len(flag.encode()) for flag in value.mount_flags) > _MOUNT_FLAGS_BYTES_MAX:
        raise InvalidArgument(f"{field}.mount_flags", "too long", f"use at most {_MOUNT_FLAGS_BYTES_MAX} bytes")
    for flag in value.mount_flags:
        if not flag or not flag.isprintable():
            raise InvalidArgument(f"{field}.mount_flags", f"{shorten(flag)!r} is no mount flag", "name an option")
    kind = fs_type(f"{field}.fs_type", value.fs_type)
    return Filesystem(fs_type=kind or FS_TYPES[0], mount_flags=tuple(value.mount_flags))


def _mode_name(mode: int) -> str:
    """Name of an access mode; its number when a newer specification than ours has it."""
    names = {number: label for label, number in _Mode.Mode.items()}
    return names.get(mode, str(mode))
