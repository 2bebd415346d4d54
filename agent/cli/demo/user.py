"""The demo without root: the volume is reached over NVMe/TCP from user space, no block device, no mount."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable

from agent.cli.demo.scene import MIB, DemoFailed, Scene, Step, size
from agent.errors import QuarryError
from agent.nvmf.initiator import Controller, NamespaceInfo, connect

_CHUNK_BYTES = 1 * MIB
_SEEN_WITHIN_S = 5.0
_LOOK_AGAIN_AFTER_S = 0.05
FOREIGN_HOST = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-00000000beef"


class UserHost:
    """Connects, writes and reads through our own initiator."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._controller: Controller | None = None

    def steps(self) -> list[Step]:
        mib = size(self._scene.data_bytes)
        return [
            Step("fence", "try to connect as a host it is not published to", self._fence),
            Step("connect", "connect over NVMe/TCP from user space", self._connect),
            Step("write", f"write {mib} of random data", self._write),
            Step("reconnect", "disconnect and connect again", self._reconnect),
            Step("verify", f"read {mib} back and compare SHA-256", self._verify),
            Step("expand", "expand online, while connected", self._expand),
            Step("stats", "controller health and room left", self._stats),
            Step("disconnect", "disconnect", self._disconnect),
        ]

    async def release(self) -> None:
        if self._controller is not None:
            await self._controller.close()
            self._controller = None

    async def _fence(self) -> str:
        try:
            controller = await self._open(FOREIGN_HOST)
        except QuarryError as error:
            return f"refused, as it must be: {error}"
        await controller.close()
        raise DemoFailed("a host that the volume is not published to could connect")

    async def _connect(self) -> str:
        self._controller = await self._open(self._scene.context["hostNqn"])
        namespace = await self._namespace()
        return f"namespace {namespace.nsid}, {size(namespace.size_bytes)}, uuid {namespace.uuid}"

    async def _open(self, host: str) -> Controller:
        context = self._scene.context
        return await connect(context["address"], int(context["port"]), context["nqn"], host)

    async def _write(self) -> str:
        scene, controller = self._scene, self._connected()
        nsid = (await self._namespace()).nsid
        digest = hashlib.sha256()
        for offset in range(0, scene.data_bytes, _CHUNK_BYTES):
            chunk = os.urandom(min(_CHUNK_BYTES, scene.data_bytes - offset))
            digest.update(chunk)
            await controller.write(nsid, offset, chunk)
            scene.progress(offset, scene.data_bytes)
        await controller.flush(nsid)
        scene.digest = digest.hexdigest()
        return f"sha256 {scene.digest[:16]}…, flushed"

    async def _reconnect(self) -> str:
        await self.release()
        return await self._connect()

    async def _verify(self) -> str:
        scene, controller = self._scene, self._connected()
        nsid = (await self._namespace()).nsid
        digest = hashlib.sha256()
        for offset in range(0, scene.data_bytes, _CHUNK_BYTES):
            digest.update(await controller.read(nsid, offset, min(_CHUNK_BYTES, scene.data_bytes - offset)))
            scene.progress(offset, scene.data_bytes)
        scene.check(digest.hexdigest())
        return f"sha256 {scene.digest[:16]}… is the same"

    async def _expand(self) -> str:
        scene = self._scene
        before = (await self._namespace()).size_bytes
        await scene.csi.expand(scene.volume_id, 2 * scene.size_bytes)

        async def grown() -> bool:
            return (await self._namespace()).size_bytes >= 2 * scene.size_bytes

        await _until(grown, "the namespace did not grow under the connection")
        return f"namespace {size(before)} -> {size((await self._namespace()).size_bytes)}, same connection"

    async def _stats(self) -> str:
        info = await self._connected().identify()
        room = await self._scene.csi.capacity({"tier": "nvme"})
        return f"{info.model.strip()} {info.firmware.strip()}, serial {info.serial.strip()}; {size(room)} room left"

    async def _disconnect(self) -> str:
        await self.release()
        return "connection closed"

    def _connected(self) -> Controller:
        if self._controller is None:
            raise DemoFailed("not connected")
        return self._controller

    async def _namespace(self) -> NamespaceInfo:
        """The volume's namespace: the one whose UUID CSI named."""
        for namespace in await self._connected().namespaces():
            if namespace.uuid == self._scene.context["uuid"]:
                return namespace
        raise DemoFailed(f"the subsystem has no namespace {self._scene.context['uuid']}")


async def _until(condition: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while not await condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"{otherwise} within {_SEEN_WITHIN_S:g} s")
        await asyncio.sleep(_LOOK_AGAIN_AFTER_S)
