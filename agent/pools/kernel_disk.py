"""Disks reached through the kernel's block devices.

By io_uring, or by Linux AIO where the target has no io_uring or sleeps: SPDK polls io_uring, which keeps a target in
interrupt mode awake for nothing (96 % of a core). The bdev has the same name, block size and content either way.

Loading a pool writes to its disk, and so does making one. So before either the disk is held exclusively and looked at
again, and it is left alone unless it is blank or carries its own pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable
from pathlib import Path

from agent.disks.eligibility import Code
from agent.disks.hold import Hold
from agent.disks.inventory import Known
from agent.disks.watch import Watch
from agent.errors import FailedPrecondition, RpcError, Unavailable
from agent.host import blkid
from agent.model import Disk, DiskPhase
from agent.pools.access import LOAD_TIMEOUT_S, NOT_LOADED, Tell
from agent.pools.pool_size import shrunk
from agent.pools.why import Refused, Why
from agent.spdk import app, bdev
from agent.spdk.client import Rpc

log = logging.getLogger(__name__)

DISCOVERY_TIMEOUT_S = 5.0
"""How long to wait for the first look at all disks. One that does not answer by then holds up nobody else."""

_ATTACHED = uuid.UUID("7d1f9c9e-5d0c-5b0e-9a55-0d6e0f1f6a43")
"""Namespace of the UUIDs of base bdevs, which tell what they are attached to."""

_METHOD_NOT_FOUND = -32601


class KernelAccess:
    """Implements `DiskAccess` for the disks that `watch` follows.

    `embedded`: the target is the one for development, which serves regular files only.
    """

    def __init__(self, rpc: Rpc, watch: Watch, *, embedded: bool) -> None:
        self._rpc = rpc
        self._inventory = watch.inventory
        self._discovered = watch.discovered
        self._embedded = embedded
        self._holds: dict[str, Hold] = {}

    def close(self) -> None:
        """Hold no disk any more."""
        for name in list(self._holds):
            self._let_go(name)

    async def attach(self, disk: Disk) -> None:
        if self._embedded:
            raise Refused(
                Why.NO_DRIVER,
                f"{disk.status.path} needs spdk_tgt: the embedded target serves regular files only. "
                "Start spdk_tgt and name its socket by --spdk-socket",
            )
        known = await self._find(disk)
        if not await self._is_attached(disk, known):
            known = await self._cleared(disk, lambda found: _refuse(disk, found))
            await self._create(disk, known)

    async def require_blank(self, disk: Disk) -> None:
        await self._cleared(disk, lambda found: _refuse_unless_blank(disk, found))

    async def zero(self, disk: Disk, start: int, end: int, tell: Tell) -> bool:
        known, held = await self._find(disk), self._holds.get(disk.meta.name)
        if held is None or not held.is_of(known.status.path):
            return False
        return await blkid.zero(Path(known.status.path), start, end, tell)

    async def detach(self, disk: Disk) -> None:
        try:
            await self._delete(disk)
        finally:
            self._let_go(disk.meta.name)

    async def explain(self, disk: Disk) -> str:
        # That its label is there was seen before it was attached.
        return shrunk(disk, (await self._find(disk)).status.size_bytes) or NOT_LOADED

    async def wipe(self, disk: Disk) -> None:
        known = await self._find(disk)
        self._let_go(disk.meta.name)  # the program that writes holds it itself
        found = await self._inventory.verdict(known.name)
        label = found.pool if found else None
        if label is not None and label.uuid == disk.status.pool.uuid:
            await blkid.remove_pool(Path(known.status.path), label)

    # --- looking ---

    async def _find(self, disk: Disk) -> Known:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._discovered.wait(), DISCOVERY_TIMEOUT_S)
        found = self._inventory.find(disk.meta.name)
        if not found:
            where = "in this machine" if self._discovered.is_set() else "found yet"
            raise Unavailable(f"disk {disk.meta.name} is not {where}")
        if len(found) > 1:
            raise Refused(Why.INELIGIBLE, f"{found[0].status.path}: {'; '.join(found[0].status.reasons)}")
        return found[0]

    async def _cleared(self, disk: Disk, refuse: Callable[[Known], None]) -> Known:
        """Hold the disk, then look at it: what was seen cannot change any more by those who respect a hold."""
        known = await self._find(disk)
        hold = await self._hold(disk, known)
        try:
            found = await self._inventory.verdict(known.name)
            if found is None or found.identity != disk.meta.name or not hold.is_of(found.status.path):
                raise Unavailable(f"{known.status.path} became another device while it was looked at")
            refuse(found)
        except BaseException:
            if await self._is_unused(disk):
                self._let_go(disk.meta.name)
            raise
        return found

    async def _hold(self, disk: Disk, known: Known) -> Hold:
        held = self._holds.get(disk.meta.name)
        if held is None or not held.is_of(known.status.path):
            self._let_go(disk.meta.name)
            try:
                held = self._holds[disk.meta.name] = await Hold.take(known.status.path)
            except FailedPrecondition as error:
                raise Refused(Why.INELIGIBLE, str(error)) from error
        return held

    def _let_go(self, name: str) -> None:
        if held := self._holds.pop(name, None):
            held.close()

    # --- the target ---

    async def _is_unused(self, disk: Disk) -> bool:
        return await bdev.get(self._rpc, disk.bdev_name) is None

    async def _is_attached(self, disk: Disk, known: Known) -> bool:
        """Whether the bdev is there, over the device that is this disk now. Takes over a new size."""
        found = await bdev.get(self._rpc, disk.bdev_name)
        if found is None:
            return False
        if found.uuid != _attachment(known) or found.filename != known.status.path:
            # The disk came back at another path, or as another device under its old name.
            await self.detach(disk)
            return False
        await self._hold_attached(disk, known)
        if why := shrunk(disk, known.status.size_bytes):
            raise Refused(Why.SHRUNK, why)
        if found.size_bytes < known.status.size_bytes:
            rescan = bdev.uring_rescan if found.driver_specific.uring else bdev.aio_rescan
            await rescan(self._rpc, disk.bdev_name)
        return True

    async def _hold_attached(self, disk: Disk, known: Known) -> None:
        """Of a disk that is in use already (by an earlier life of this agent) the hold is a help, not a condition."""
        try:
            await self._hold(disk, known)
        except (Refused, Unavailable) as error:
            log.warning("disk %s is in use by its pool and cannot be held: %s", disk.meta.name, error)

    async def _create(self, disk: Disk, known: Known) -> None:
        path, block_bytes = known.status.path, known.status.block_bytes
        sleeps = (await app.reactors(self._rpc)).sleeps
        for create in (bdev.aio_create,) if sleeps else (bdev.uring_create, bdev.aio_create):
            try:
                await create(
                    self._rpc, disk.bdev_name, path, block_bytes, uuid=_attachment(known), timeout_s=LOAD_TIMEOUT_S
                )
            except RpcError as error:
                if not await self._is_unused(disk):
                    return
                if create is bdev.aio_create:
                    self._let_go(disk.meta.name)
                    raise
                level = logging.INFO if error.code == _METHOD_NOT_FOUND else logging.WARNING
                log.log(level, "%s is served by AIO, since io_uring cannot: %s", path, error)
            else:
                return

    async def _delete(self, disk: Disk) -> None:
        found = await bdev.get(self._rpc, disk.bdev_name)
        if found is None:
            return
        delete = bdev.uring_delete if found.driver_specific.uring else bdev.aio_delete
        try:
            await delete(self._rpc, disk.bdev_name)
        except RpcError:
            if not await self._is_unused(disk):
                raise


def _attachment(known: Known) -> str:
    """The UUID of a base bdev: another one when the device is another one, even under the same name."""
    status = known.status
    return str(uuid.uuid5(_ATTACHED, f"{known.identity}\n{status.path}\n{status.disk_sequence}"))


def _refuse(disk: Disk, found: Known) -> None:
    """Raise Refused unless the disk is blank, carries its own pool, or half of one that was begun."""
    recorded, label = disk.status.pool.uuid, found.pool
    ours = label is not None and label.uuid == recorded
    # What is recognised beside a pool that is known to be ours are the data of its volumes.
    reasons = [each for each in found.reasons if not (each.code is Code.CONTENT and (ours or _is_begun(disk, found)))]
    if reasons:
        why = Why.OTHER_POOL if any(each.code is Code.OTHER_POOL for each in reasons) else Why.INELIGIBLE
        raise Refused(why, f"{found.status.path} {'; '.join(each.text for each in reasons)}")
    if not recorded or ours:
        return
    why, holds = (Why.OTHER_POOL, f"pool {label.uuid}") if label else (Why.POOL_LOST, "nothing")
    raise Refused(
        why,
        f"{found.status.path} held pool {recorded} and now holds {holds}; it is left alone. Give the disk back, or "
        "remove its volumes and release it",
    )


def _refuse_unless_blank(disk: Disk, found: Known) -> None:
    _refuse(disk, found)
    if found.content is None or not (found.content.blank or _is_begun(disk, found)):
        what = found.content.description if found.content else "something unknown"
        raise Refused(Why.INELIGIBLE, f"{found.status.path} carries {what} and is not blank; it is left alone")


def _is_begun(disk: Disk, found: Known) -> bool:
    """Whether what lies there is half a pool: the label is written before the name, everything before is zeroes."""
    content = found.content
    begun = content is not None and content.label is not None and not content.label.name and content.only_label
    return begun and disk.status.phase is DiskPhase.FORMATTING
