"""A namespace of an attached controller as a bdev ("NVMe disk")."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from agent.embedded.bdev import Bdev, IoHints
from agent.nvmf.identify import CMIC_ANA, CMIC_MULTI_CONTROLLER, AnaState, IdentifyController, OptionalCommands
from agent.nvmf.initiator import NamespaceInfo

if TYPE_CHECKING:
    from agent.embedded.nvmf.remote import RemoteController

_STATES = {
    AnaState.OPTIMIZED: "optimized",
    AnaState.NON_OPTIMIZED: "non_optimized",
    AnaState.INACCESSIBLE: "inaccessible",
    AnaState.PERSISTENT_LOSS: "persistent_loss",
    AnaState.CHANGE: "change",
}


class NvmeBdev(Bdev):
    """Named `<controller>n<nsid>`. Its I/O goes through the controller, which waits, repeats or fails it."""

    product_name: ClassVar[str] = "NVMe disk"
    module: ClassVar[str] = "nvme"
    hints: ClassVar[IoHints] = IoHints(1, 1, 32, 1, 1)
    numa_id: ClassVar[int | None] = -1
    memory_domains: ClassVar[tuple[str, ...]] = ("DMA",)

    def __init__(self, remote: RemoteController, namespace: NamespaceInfo) -> None:
        identity = namespace.uuid or str(uuid.uuid5(uuid.NAMESPACE_OID, f"{remote.path.subnqn}/{namespace.nsid}"))
        blocks = namespace.size_bytes // namespace.block_bytes
        super().__init__(f"{remote.name}n{namespace.nsid}", identity, namespace.block_bytes, blocks)
        self._remote = remote
        self._namespace = namespace
        self._info = remote.controller.info if remote.controller is not None else IdentifyController()

    @property
    def supported_io(self) -> frozenset[str]:
        optional = self._info.optional_commands
        offered = {"read", "write", "flush", "reset", "nvme_admin", "nvme_io", "abort", "write_zeroes"}
        if optional & OptionalCommands.DATASET_MANAGEMENT:
            offered.add("unmap")
        if optional & OptionalCommands.COMPARE:
            offered.add("compare")
        return frozenset(offered)

    def driver_specific(self) -> dict[str, Any]:
        info, namespace = self._info, self._namespace
        state = self._remote.ana_state(namespace.ana_group)
        controller = self._remote.controller
        data: dict[str, Any] = {"id": namespace.nsid}
        if state is not None:
            data["ana_state"] = _STATES[state]
        path = {
            "trid": self._remote.describe_path(),
            "ctrlr_data": {
                "cntlid": controller.cntlid if controller is not None else info.cntlid,
                "vendor_id": f"{info.vendor:#06x}",
                "model_number": info.model,
                "serial_number": info.serial,
                "firmware_revision": info.firmware,
                "subnqn": info.subnqn,
                "oacs": {"security": 0, "format": 0, "firmware": 0, "ns_manage": 0},
                "multi_ctrlr": bool(info.cmic & CMIC_MULTI_CONTROLLER),
                "ana_reporting": bool(info.cmic & CMIC_ANA),
            },
            "vs": {"nvme_version": f"{info.version >> 16}.{info.version >> 8 & 0xFF}"},
            "ns_data": {**data, "can_share": namespace.shared},
        }
        return {"nvme": [path], "mp_policy": "active_passive"}

    async def do_read(self, offset: int, length: int) -> bytes:
        return await self._remote.perform(lambda ctrlr: ctrlr.read(self._namespace.nsid, offset, length))

    async def do_write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        await self._remote.perform(lambda ctrlr: ctrlr.write(self._namespace.nsid, offset, data))

    async def do_write_zeroes(self, offset: int, length: int) -> None:
        await self._remote.perform(lambda ctrlr: ctrlr.write_zeroes(self._namespace.nsid, offset, length))

    async def do_unmap(self, offset: int, length: int) -> None:
        await self._remote.perform(lambda ctrlr: ctrlr.unmap(self._namespace.nsid, offset, length))

    async def do_flush(self) -> None:
        await self._remote.perform(lambda ctrlr: ctrlr.flush(self._namespace.nsid))
