"""Whether a disk may be claimed: yes, or every reason why not. Pure; sees only what was looked at before.

An answer is as old as what it was made from: whoever writes to a disk looks again, immediately before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from agent.disks.facts import Facts
from agent.disks.source import Look
from agent.disks.transport import FABRICS, NETWORK, Transport
from agent.host.blkid import Content
from agent.model import POOL_PREFIX
from agent.sizes import GIB, MIB


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be a disk at all. Sizes in bytes."""

    min_bytes: int = GIB
    """Below, metadata and reserve leave too little."""
    loop_devices: bool = False
    """Take loop devices on regular files for disks."""


class Code(StrEnum):
    """What a reason is about, for programs; people get the text."""

    KIND = "kind"
    NETWORK = "network"
    OURS = "ours"
    PATH = "path"
    REMOVABLE = "removable"
    READONLY = "read-only"
    SIZE = "size"
    BLOCK_SIZE = "block-size"
    ZONED = "zoned"
    NO_IDENTITY = "no-identity"
    DUPLICATE = "duplicate"
    BOOT = "boot"
    MOUNTED = "mounted"
    SWAP = "swap"
    HELD = "held"
    LOOP = "loop"
    PARTITIONS = "partitions"
    CONTENT = "content"
    OTHER_POOL = "other-pool"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Reason:
    code: Code
    text: str


SUPPORTED_BLOCKS = (512, 4096)
"""Logical block sizes a pool can be put on."""

_KINDS = {
    Transport.DM: "is a device-mapper volume ({backing}): offer the disks below it instead",
    Transport.LOOP: "is a loop device on {backing}: a file serves as a disk by `file_disks`, without a loop device",
    Transport.UBLK: "is served by a program of this machine (ublk), it is no disk",
    Transport.ZVOL: "is a volume of a ZFS pool, it is no disk",
    Transport.BCACHE: "is a bcache device: offer the disks below it instead",
    Transport.MEMORY: "lies in memory and is gone at the next boot",
    Transport.OPTICAL: "is an optical drive",
    Transport.FLOPPY: "is a floppy drive",
    Transport.MMC: "is a memory card or eMMC: not made for this",
    Transport.OTHER: "is of a kind that is not known here",
}


def reasons(facts: Facts, look: Look, twins: Sequence[str] = (), policy: Policy | None = None) -> tuple[Reason, ...]:
    """Why the disk may not be claimed; empty: it may. `twins` are the other devices with the same identity.

    A disk that carries its own pool and nothing else may be claimed: that pool is imported.
    """
    policy = policy or Policy()
    if facts.volume:
        return (Reason(Code.OURS, f"is {facts.volume} of Quarry, in use on this machine: it is no disk"),)
    found = (
        *_of_kind(facts, policy),
        *_of_identity(facts, twins),
        *_of_state(facts, policy),
        *_of_use(facts),
    )
    return (*found, *_of_partitions(facts), *_of_content(facts, look, is_free=not found))


def worth_reading(facts: Facts) -> bool:
    """Whether to read from the device: not over a network, where an answer may never come, nor what never serves."""
    if facts.path_of or facts.volume or facts.suspended or not facts.size_bytes or facts.transport in NETWORK:
        return False
    return facts.transport not in (Transport.MEMORY, Transport.OPTICAL, Transport.FLOPPY, Transport.UBLK)


def _of_kind(facts: Facts, policy: Policy) -> Iterator[Reason]:
    if facts.path_of:
        yield Reason(Code.PATH, f"is one of the paths to {facts.path_of}, which is the disk")
    if facts.transport is Transport.NVME_FABRICS:
        yield Reason(Code.NETWORK, "is an NVMe namespace whose controller is not known to be in this machine")
    elif facts.transport in FABRICS:
        yield Reason(Code.NETWORK, f"is a namespace of another machine or program ({facts.transport}), never a disk")
    elif facts.transport in NETWORK:
        yield Reason(
            Code.NETWORK, f"is reached over a network ({facts.transport}): only disks of this machine are used"
        )
    if facts.transport in _KINDS and not (facts.transport is Transport.LOOP and policy.loop_devices):
        yield Reason(Code.KIND, _KINDS[facts.transport].format(backing=facts.backing or "unknown"))
    if facts.transport is Transport.USB:
        yield Reason(Code.REMOVABLE, "is on USB, where it may be pulled at any time: connect it by SATA, SAS or NVMe")
    elif facts.removable:
        yield Reason(Code.REMOVABLE, "has a removable medium")


def _of_identity(facts: Facts, twins: Sequence[str]) -> Iterator[Reason]:
    if twins:
        yield Reason(
            Code.DUPLICATE,
            f"says to be the same disk as {_names(twins)} ({facts.identity}): either both are paths to one disk, "
            "then set up multipathing, or one is a clone, then give it a serial number of its own or remove it",
        )
    if not facts.identity and not facts.path_of and facts.transport not in _KINDS:
        yield Reason(
            Code.NO_IDENTITY,
            "has no WWN, NGUID, EUI-64 or serial number to know it by after a reboot: "
            "give a virtual disk a serial number; for others try newer firmware",
        )


def _of_state(facts: Facts, policy: Policy) -> Iterator[Reason]:
    if facts.readonly:
        yield Reason(Code.READONLY, f"is read-only: see `blockdev --getro {facts.node}`, write protection, its health")
    if facts.zoned:
        yield Reason(Code.ZONED, "is a zoned disk that must be written in order (host-managed SMR or ZNS)")
    if facts.size_bytes is None:
        yield Reason(Code.SIZE, "tells no size that can be true: it is broken, or its firmware is")
    elif facts.size_bytes < policy.min_bytes:
        yield Reason(
            Code.SIZE,
            f"is too small: {facts.size_bytes / MIB:.4g} MiB, at least {policy.min_bytes / MIB:.4g} MiB are needed",
        )
    if facts.block_bytes not in SUPPORTED_BLOCKS:
        told = "no block size" if facts.block_bytes is None else f"blocks of {facts.block_bytes} bytes"
        yield Reason(Code.BLOCK_SIZE, f"has {told}: 512 or 4096 bytes are needed (NVMe: `nvme format --lbaf`)")


def _of_use(facts: Facts) -> Iterator[Reason]:
    if facts.boot:
        yield Reason(Code.BOOT, "carries the running system")
    if facts.mounts:
        yield Reason(Code.MOUNTED, f"is mounted at {_names(facts.mounts)}: unmount it if it is not needed")
    if facts.swap:
        yield Reason(Code.SWAP, "is used as swap: `swapoff` it and take it out of /etc/fstab")
    if facts.holders and not facts.path_of:
        yield Reason(Code.HELD, f"is in use by {_names(facts.holders)}: see `lsblk {facts.node}`")
    if facts.loops:
        yield Reason(Code.LOOP, f"is shown by {_names(facts.loops)}: `losetup --detach` it")


def _of_partitions(facts: Facts) -> Iterator[Reason]:
    if facts.partitions:
        parts = [f"{part.name} ({part.fs_type})" if part.fs_type else part.name for part in facts.partitions]
        yield Reason(Code.PARTITIONS, f"has the partition{'s' * (len(parts) > 1)} {_names(parts)}")


def _of_content(facts: Facts, look: Look, *, is_free: bool) -> Iterator[Reason]:
    """`is_free`: nobody uses the disk and it could be claimed. Only then is it said how to destroy what is on it."""
    if look.content is not None:
        yield from _of_look(facts, look.content, is_free=is_free)
        return
    for signature in facts.told_content:
        yield Reason(Code.CONTENT, f"carries {signature}, says udev")
    if facts.suspended:
        yield Reason(Code.UNREADABLE, "is suspended (`dmsetup resume`), so what is on it is not known")
    elif worth_reading(facts):
        yield Reason(Code.UNREADABLE, f"could not be looked into: {look.problem or 'it has not been read yet'}")


def _of_look(facts: Facts, content: Content, *, is_free: bool) -> Iterator[Reason]:
    label = content.label
    own = label is not None and bool(facts.identity) and label.name == POOL_PREFIX + facts.identity
    if content.blank or (own and content.only_label):
        return
    if label is not None and label.name.startswith(POOL_PREFIX) and not own:
        yield Reason(
            Code.OTHER_POOL,
            f"carries {content.description}, made on another disk than this one ({facts.identity or 'no id'}): "
            "it is a copy of that disk, or names itself differently here, and may hold volumes that are in use",
        )
        return
    if not is_free:
        yield Reason(Code.CONTENT, f"carries {content.description}")
        return
    how = f"`wipefs --all {facts.node}`" if content.recognized and label is None else _overwrite(facts)
    yield Reason(Code.CONTENT, f"carries {content.description}; if nothing of it is needed: {how}")


def _overwrite(facts: Facts) -> str:
    return f"overwrite it (`blkdiscard --zeroout {facts.node}`)"


def _names(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
