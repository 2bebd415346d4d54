"""RPC methods of SPDK's raid module, raid1 without superblock only: `bdev_raid_*`."""

from __future__ import annotations

import errno
import os
from typing import Any, Literal
from uuid import UUID, uuid4

from agent.embedded.bdev import Bdev, BdevRegistry, Claimed, NameTaken, RegistryEvent
from agent.embedded.bdev_methods import NamedParams
from agent.embedded.raid import DEFAULT_WINDOW_BYTES, NULL_UUID, RaidBdev
from agent.embedded.rpc import PARSE_ERROR, U32, Methods, Params, RpcFault

RAID_DECODE_FAULT = RpcFault(PARSE_ERROR, "spdk_json_decode_object failed")
RAID1_LEVELS = frozenset({"raid1", "1"})
MIN_MEMBERS = 2
MAX_MEMBERS = 255


class RaidCreateParams(Params):
    name: str
    raid_level: Literal["raid0", "0", "raid1", "1", "raid5f", "5f", "concat"]
    base_bdevs: list[str]
    strip_size_kb: U32 = 0
    uuid: UUID | None = None
    superblock: bool = False


class RaidGetParams(Params):
    category: Literal["all", "online", "configuring", "offline"]


class RaidDeleteParams(Params):
    name: str
    clear_sb: bool = False


class RaidAddParams(Params):
    raid_bdev: str
    base_bdev: str


class RaidOptionsParams(Params):
    process_window_size_kb: U32 = DEFAULT_WINDOW_BYTES // 1024
    process_max_bandwidth_mb_sec: U32 = 0


def _not_created(name: str, number: int) -> RpcFault:
    return RpcFault(-number, f"Failed to create RAID bdev {name}: {os.strerror(number)}")


def _not_added(params: RaidAddParams, number: int) -> RpcFault:
    text = f"Failed to add base bdev {params.base_bdev} to RAID bdev {params.raid_bdev}: {os.strerror(number)}"
    return RpcFault(-number, text)


class RaidMethods:
    """Handlers of the `bdev_raid_*` methods; raids are forgotten with the process."""

    def __init__(self, registry: BdevRegistry) -> None:
        self._registry = registry
        self._raids: dict[str, RaidBdev] = {}
        self._window_bytes = DEFAULT_WINDOW_BYTES
        registry.on_change(self._on_registry)

    def register(self, methods: Methods) -> None:
        methods.add("bdev_raid_create", RaidCreateParams, self.create, RAID_DECODE_FAULT)
        methods.add("bdev_raid_delete", RaidDeleteParams, self.delete, RAID_DECODE_FAULT)
        methods.add("bdev_raid_get_bdevs", RaidGetParams, self.get, RAID_DECODE_FAULT)
        methods.add("bdev_raid_add_base_bdev", RaidAddParams, self.add, RAID_DECODE_FAULT)
        methods.add("bdev_raid_remove_base_bdev", NamedParams, self.remove, RAID_DECODE_FAULT)
        methods.add("bdev_raid_set_options", RaidOptionsParams, self.set_options, RAID_DECODE_FAULT)

    async def create(self, params: RaidCreateParams) -> bool:
        name = params.name
        if params.raid_level not in RAID1_LEVELS or params.superblock:
            raise RpcFault(-errno.ENOTSUP, "The embedded target has only raid1 without superblock")
        if name in self._raids or self._registry.get(name) is not None:
            raise _not_created(name, errno.EEXIST)
        count = len(params.base_bdevs)
        if not name or not MIN_MEMBERS <= count <= MAX_MEMBERS or params.strip_size_kb:
            raise _not_created(name, errno.EINVAL)
        uuid = str(params.uuid) if params.uuid else NULL_UUID
        raid = RaidBdev(self._registry, name, uuid, params.base_bdevs, lambda: self._forget(name))
        try:
            for member in raid.members:
                bdev = self._registry.get(member.name or "")
                if bdev is not None:
                    raid.admit(member, bdev)
            self._start_when_complete(raid)
        except (Claimed, ValueError, NameTaken) as error:
            raid.end()
            number = errno.EPERM if isinstance(error, Claimed) else errno.EINVAL
            raise _not_created(name, number) from error
        self._raids[name] = raid
        return True

    def _start_when_complete(self, raid: RaidBdev) -> None:
        if raid.complete:
            if raid.uuid == NULL_UUID:
                raid.identify(str(uuid4()))
            raid.window_bytes = self._window_bytes
            raid.go_online()

    def _forget(self, name: str) -> None:
        self._raids.pop(name, None)

    def _on_registry(self, event: RegistryEvent, bdev: Bdev) -> None:
        """A bdev appeared: perhaps the member that a raid waits for."""
        if event is not RegistryEvent.ADDED:
            return
        for raid in list(self._raids.values()):
            for member in raid.members if raid.state == "configuring" else ():
                if member.bdev is None and member.name is not None and self._registry.get(member.name) is bdev:
                    try:
                        raid.admit(member, bdev)
                        self._start_when_complete(raid)
                    except (Claimed, ValueError, NameTaken):
                        continue  # as in the real one, the raid goes on waiting

    async def delete(self, params: RaidDeleteParams) -> bool:
        raid = self._raids.get(params.name)
        if raid is None:
            raise RpcFault(-errno.ENODEV, f"raid bdev {params.name} not found")
        raid.end()
        return True

    async def get(self, params: RaidGetParams) -> list[dict[str, Any]]:
        raids = (raid for raid in self._raids.values() if params.category in ("all", raid.state))
        return [{"name": raid.name, **raid.describe()} for raid in raids]

    async def add(self, params: RaidAddParams) -> bool:
        raid = self._raids.get(params.raid_bdev)
        if raid is None:
            raise RpcFault(-errno.ENODEV, f"raid bdev {params.raid_bdev} is not found in config")
        if raid.complete:
            raise _not_added(params, errno.EPERM if raid.rebuild is not None else errno.EINVAL)
        bdev = self._registry.get(params.base_bdev)
        if bdev is None:
            raise _not_added(params, errno.ENODEV)
        try:
            raid.add_member(bdev, params.base_bdev)
        except Claimed as error:
            raise _not_added(params, errno.EPERM) from error
        except ValueError as error:
            raise _not_added(params, errno.EINVAL) from error
        return True

    async def remove(self, params: NamedParams) -> bool:
        bdev = self._registry.get(params.name)
        for raid in self._raids.values():
            member = raid.member_of(bdev) if bdev is not None else None
            if member is not None:
                raid.drop_member(member)
                return True
        raise RpcFault(-errno.ENODEV, "Failed to remove base bdev from raid bdev")

    async def set_options(self, params: RaidOptionsParams) -> bool:
        if params.process_window_size_kb == 0:
            raise RpcFault(-errno.EINVAL)
        self._window_bytes = params.process_window_size_kb * 1024
        return True
