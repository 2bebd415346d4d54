"""raid1 without superblock: every write goes to all members, a failed member leaves, a new one is rebuilt online."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from agent.embedded.bdev import Bdev, BdevEvent, BdevRegistry, Claimed, IoFailure
from agent.embedded.gate import WriteGate
from agent.tasks.background import noticed

log = logging.getLogger(__name__)

NULL_UUID = "00000000-0000-0000-0000-000000000000"
CLAIMANT = "raid"
DEFAULT_WINDOW_BYTES = 1024 * 1024


@dataclass(slots=True)
class Member:
    """One place in the raid; `bdev` is None while it is empty or its bdev has not appeared."""

    name: str | None
    bdev: Bdev | None = None
    unsubscribe: Callable[[], None] | None = None

    def clear(self) -> None:
        """Let the bdev go and empty the place."""
        if self.unsubscribe is not None:
            self.unsubscribe()
        if self.bdev is not None:
            self.bdev.release()
        self.name = self.bdev = self.unsubscribe = None


@dataclass(slots=True)
class Rebuild:
    """A rebuild under way; `done_blocks` are the same on `member` as on the others."""

    member: Member
    done_blocks: int = 0
    task: asyncio.Task[None] | None = None


class RaidBdev(Bdev):
    """A raid1 bdev. In state "configuring" it waits for members and is not registered yet."""

    product_name = "Raid Volume"
    module = "raid"

    def __init__(
        self, registry: BdevRegistry, name: str, uuid: str, names: list[str], on_end: Callable[[], None]
    ) -> None:
        """`on_end` is called once when the last member is gone."""
        super().__init__(name, uuid, 512, 0)
        self.state = "configuring"
        self.members = [Member(member) for member in names]
        self.rebuild: Rebuild | None = None
        self.window_bytes = DEFAULT_WINDOW_BYTES
        self._registry = registry
        self._on_end = on_end
        self._gate = WriteGate()

    # --- members --------------------------------------------------------------------------------------------------

    @property
    def present(self) -> list[Member]:
        return [member for member in self.members if member.bdev is not None]

    @property
    def complete(self) -> bool:
        return len(self.present) == len(self.members)

    def admit(self, member: Member, bdev: Bdev) -> None:
        """Claim `bdev` for the place. Raises Claimed, ValueError when its blocks are of another size."""
        others = [known.bdev for known in self.present if known.bdev is not None]
        if others and others[0].block_size != bdev.block_size:
            raise ValueError("block size differs")
        bdev.claim(CLAIMANT)
        member.bdev = bdev
        member.unsubscribe = bdev.subscribe(lambda _, event: self._on_member_event(member, event))
        self.block_size = bdev.block_size

    def identify(self, uuid: str) -> None:
        """Give a uuid to a raid that was made without one; only before it is online."""
        self.uuid, self.aliases = uuid, [uuid]

    def go_online(self) -> None:
        """Register the raid, all members being present. Raises NameTaken."""
        self.num_blocks = self._common_blocks()
        self._registry.add(self)
        self.state = "online"

    def _common_blocks(self) -> int:
        return min((member.bdev.num_blocks for member in self.members if member.bdev is not None), default=0)

    def member_of(self, bdev: Bdev) -> Member | None:
        return next((member for member in self.members if member.bdev is bdev), None)

    def add_member(self, bdev: Bdev, name: str) -> None:
        """Put `bdev` into a free place and start to rebuild it. Raises Claimed, ValueError when it does not fit."""
        free = next((member for member in self.members if member.bdev is None), None)
        if free is None or bdev.block_size != self.block_size or bdev.num_blocks < self.num_blocks:
            raise ValueError("no free place or too small")
        if self.rebuild is not None:
            raise Claimed("a rebuild is running")
        self.admit(free, bdev)
        free.name = name
        self.rebuild = Rebuild(free)
        self.rebuild.task = asyncio.get_running_loop().create_task(self._run_rebuild(self.rebuild))
        noticed("raid-rebuild", self.rebuild.task)

    def drop_member(self, member: Member) -> None:
        """Take a member out; the raid ends with the last one that has the data."""
        if member.bdev is None:
            return
        if self.rebuild is not None and self.rebuild.member is member:
            self._stop_rebuild()
        member.clear()
        in_sync = [known for known in self.present if not (self.rebuild and self.rebuild.member is known)]
        if self.state == "online" and not in_sync:
            log.warning("raid %s lost its last member", self.name)
            self.state = "offline"
            self.end()

    def end(self) -> None:
        """Unregister and let all members go."""
        self._stop_rebuild()
        if self.state != "configuring":
            self._registry.remove(self.name)
        for member in self.members:
            if member.bdev is not None:
                member.clear()
        self._on_end()

    def _on_member_event(self, member: Member, event: BdevEvent) -> None:
        if event is BdevEvent.REMOVE:
            self.drop_member(member)
        elif self.state == "online":
            self._registry.resize(self, self._common_blocks())

    # --- rebuild --------------------------------------------------------------------------------------------------

    def _stop_rebuild(self) -> None:
        if self.rebuild is not None and self.rebuild.task is not None:
            self.rebuild.task.cancel()
        self.rebuild = None

    async def _run_rebuild(self, rebuild: Rebuild) -> None:
        """Copy window by window; writes wait while a window is copied, so each block ends up the same everywhere."""
        try:
            while rebuild.done_blocks < self.num_blocks:
                async with self._gate.closed():
                    blocks = min(self.window_bytes // self.block_size, self.num_blocks - rebuild.done_blocks)
                    await self._copy(rebuild, rebuild.done_blocks * self.block_size, blocks * self.block_size)
                    rebuild.done_blocks += blocks
                await asyncio.sleep(0)
            if rebuild.member.bdev is not None:  # what the others have made durable is durable here too
                await rebuild.member.bdev.flush()
        except IoFailure as error:
            log.warning("raid %s: rebuild of %s failed: %s", self.name, rebuild.member.name, error)
            self.rebuild = None
            self.drop_member(rebuild.member)
        else:
            self.rebuild = None

    async def _copy(self, rebuild: Rebuild, offset: int, length: int) -> None:
        data = await self.do_read(offset, length)
        target = rebuild.member.bdev
        if target is None:
            raise IoFailure(errno.ENODEV, "the member went away")
        await target.write(offset, data)

    # --- I/O ------------------------------------------------------------------------------------------------------

    @property
    def supported_io(self) -> frozenset[str]:
        return frozenset({"read", "write", "unmap", "write_zeroes", "reset"})

    async def do_read(self, offset: int, length: int) -> bytes:
        failure = IoFailure(errno.EIO, f"raid {self.name} has no member to read from")
        for member in self.present:
            if member.bdev is None or (self.rebuild is not None and self.rebuild.member is member):
                continue
            try:
                return await member.bdev.read(offset, length)
            except IoFailure as error:
                failure = error
        raise failure

    async def do_write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        await self._everywhere(lambda bdev: bdev.write(offset, data))

    async def do_write_zeroes(self, offset: int, length: int) -> None:
        await self._everywhere(lambda bdev: bdev.write_zeroes(offset, length))

    async def do_unmap(self, offset: int, length: int) -> None:
        await self._everywhere(lambda bdev: bdev.unmap(offset, length))

    async def do_flush(self) -> None:
        await self._everywhere(lambda bdev: bdev.flush())

    async def _everywhere(self, operation: Callable[[Bdev], Awaitable[None]]) -> None:
        """Run on all members; one that fails leaves the raid as long as another one in sync succeeded."""
        await self._gate.enter()
        rebuild = self.rebuild
        try:
            targets = [(member, member.bdev) for member in self.present if member.bdev is not None]
            results = await asyncio.gather(*(operation(bdev) for _, bdev in targets), return_exceptions=True)
            failed = [
                (member, bdev, error)
                for (member, bdev), error in zip(targets, results, strict=True)
                if isinstance(error, BaseException)
            ]
            behind = rebuild.member if rebuild is not None and rebuild.done_blocks < self.num_blocks else None
            kept = len(targets) - len(failed)
            if behind is not None and any(member is behind for member, _ in targets):
                kept -= not any(member is behind for member, _, _ in failed)
            if kept == 0:  # what only a member has that is not rebuilt yet would be lost with the last one in sync
                raise failed[0][2] if failed else IoFailure(errno.EIO, f"raid {self.name} has no member")
            for member, bdev, error in failed:
                if not isinstance(error, IoFailure):
                    raise error
                if member.bdev is bdev:
                    log.warning("raid %s: member %s failed: %s", self.name, member.name, error)
                    self.drop_member(member)
        finally:
            self._gate.leave()

    # --- description ----------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """One element of `bdev_raid_get_bdevs`."""
        present = len(self.present)
        answer: dict[str, Any] = {
            "uuid": self.uuid,
            "strip_size_kb": 0,
            "state": self.state,
            "raid_level": "raid1",
            "superblock": False,
            "num_base_bdevs": len(self.members),
            "num_base_bdevs_discovered": present,
            "num_base_bdevs_operational": len(self.members) if self.state == "configuring" else present,
        }
        if self.rebuild is not None:
            done = self.rebuild.done_blocks
            percent = done * 100 // self.num_blocks if self.num_blocks else 0
            answer["process"] = {
                "type": "rebuild",
                "target": self.rebuild.member.name,
                "progress": {"blocks": done, "percent": percent},
            }
        answer["base_bdevs_list"] = [self._describe_member(member) for member in self.members]
        return answer

    def _describe_member(self, member: Member) -> dict[str, Any]:
        bdev = member.bdev
        size = self.num_blocks if self.state != "configuring" else bdev.num_blocks if bdev else 0
        return {
            "name": member.name,
            "uuid": bdev.uuid if bdev else NULL_UUID,
            "is_configured": bdev is not None,
            "data_offset": 0,
            "data_size": size,
        }

    def driver_specific(self) -> dict[str, Any]:
        return {"raid": self.describe()}

    def info(self) -> dict[str, Any]:
        info = super().info()
        specific = info.pop("driver_specific")
        domains = [kind for member in self.present if member.bdev is not None for kind in member.bdev.memory_domains]
        if domains:
            info["memory_domains"] = [{"dma_device_type": kind} for kind in domains]
        return {**info, "driver_specific": specific}
