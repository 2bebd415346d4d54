"""Names: from what the orchestrator calls a volume to what the target, the store and the host call it."""

from __future__ import annotations

import hashlib
import re

from agent.model import VOLUME_NQN_PREFIX

_VOLUME_ID = re.compile(r"vol-[0-9a-f]{32}")
_SNAPSHOT_ID = re.compile(r"snap-[0-9a-f]{32}(-[1-9][0-9]{0,8})?")
_GROUP_ID = re.compile(r"group-[0-9a-f]{32}")
_HELPER = re.compile(r"help-[0-9a-f]{32}")


REPLICA = "r0"
"""Name of the one copy of a volume."""

UNKNOWN_VOLUME = "vol-" + 32 * "0"
"""Source of a snapshot on which no volume stands: CSI wants one to be named."""


def volume_id(csi_name: str) -> str:
    """The id of the volume that CreateVolume calls `csi_name`.

    Names reach 128 characters of any kind, lvol names 63: mapped, never copied. The same name always gives the same
    id, so a repeated CreateVolume finds the volume of the first one whatever happened in between.
    """
    return "vol-" + hashlib.sha256(csi_name.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_volume_id(text: str) -> bool:
    """Whether `text` can be one of our volume ids."""
    return _VOLUME_ID.fullmatch(text) is not None


def snapshot_id(csi_name: str, generation: int = 0) -> str:
    """The id of the snapshot that CreateSnapshot calls `csi_name`, and the name of its lvol.

    A deleted snapshot may have to stay in the pool for its clones: one made later under the same name is of the next
    generation.
    """
    name = "snap-" + hashlib.sha256(csi_name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{name}-{generation}" if generation else name


def is_snapshot_id(text: str) -> bool:
    """Whether `text` can be one of our snapshot ids."""
    return _SNAPSHOT_ID.fullmatch(text) is not None


def clone_name(volume: str) -> str:
    """In place of a CSI name, that of the internal snapshot `volume` is cloned from. No CSI name has a NUL."""
    return f"\0clone {volume}"


def group_id(csi_name: str) -> str:
    """The id of the snapshot group that CreateVolumeGroupSnapshot calls `csi_name`."""
    return "group-" + hashlib.sha256(csi_name.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_group_id(text: str) -> bool:
    """Whether `text` can be the id of one of our groups."""
    return _GROUP_ID.fullmatch(text) is not None


def member_name(group: str, volume: str) -> str:
    """In place of a CSI name, that of the snapshot of `volume` in `group`. No CSI name has a NUL."""
    return f"\0{group} {volume}"


def helper_name(volume: str) -> str:
    """Name of the lvol that exists for a moment while `volume` is made from a snapshot that nothing depends on."""
    return "help-" + volume.removeprefix("vol-")


def is_helper_name(text: str) -> bool:
    """Whether `text` names such an lvol. They hold nothing."""
    return _HELPER.fullmatch(text) is not None


def volume_nqn(volume: str) -> str:
    """NQN of the subsystem that exports `volume`."""
    return VOLUME_NQN_PREFIX + volume


def volume_of_nqn(nqn: str) -> str | None:
    """The volume a subsystem NQN exports, or None when the subsystem is not one of ours."""
    name = nqn.removeprefix(VOLUME_NQN_PREFIX)
    return name if name != nqn and is_volume_id(name) else None


def serial_number(volume: str) -> str:
    """NVMe serial number of the volume's controller: at most 20 printable ASCII characters (NVM Express Base, SN)."""
    return "Q" + volume.removeprefix("vol-")[:19].upper()
