"""The demo as a kubelet: the volume becomes a kernel block device with a filesystem, mounted for a pod."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from agent.cli.demo import data
from agent.cli.demo.scene import DemoFailed, Scene, Step, insist, size

_RELEASE_TIMEOUT_S = 10.0


class KernelHost:
    """NodeStage, NodePublish and what is between them and the way back."""

    def __init__(self, scene: Scene, fs_type: str) -> None:
        self._scene = scene
        self._fs_type = fs_type
        self.root = scene.workspace.folder / "csi"
        self._staging = self.root / "staging"
        self._target = self.root / "pod" / "volume"
        self._file = self._target / "random.bin"

    def steps(self) -> list[Step]:
        mib = size(self._scene.data_bytes)
        return [
            Step("stage", f"NodeStage: attach, make {self._fs_type}, mount", self._stage),
            Step("mount", "NodePublish: mount it for the pod", self._mount),
            Step("write", f"write {mib} of random data", self._write),
            Step("remount", "unmount, detach, attach and mount again", self._remount),
            Step("verify", f"read {mib} back and compare SHA-256", self._verify),
            Step("expand", "expand online, while mounted", self._expand),
            Step("stats", "NodeGetVolumeStats", self._stats),
            Step("unmount", "NodeUnpublish and NodeUnstage: unmount, detach", self._unmount),
        ]

    async def release(self) -> None:
        scene = self._scene
        if scene.volume_id:
            await insist(partial(scene.csi.node_unpublish, scene.volume_id, self._target), _RELEASE_TIMEOUT_S)
            await insist(partial(scene.csi.unstage, scene.volume_id, self._staging), _RELEASE_TIMEOUT_S)

    async def _stage(self) -> str:
        self._staging.mkdir(parents=True, exist_ok=True)  # the orchestrator makes it, says the specification
        self._target.parent.mkdir(exist_ok=True)
        await self._scene.csi.stage(self._scene.volume_id, self._staging, fs_type=self._fs_type)
        return f"{_mounted_device(self._staging)}, {self._fs_type}"

    async def _mount(self) -> str:
        scene = self._scene
        await scene.csi.node_publish(scene.volume_id, self._staging, self._target, fs_type=self._fs_type)
        return f"at {self._target}"

    async def _write(self) -> str:
        scene = self._scene
        work = partial(data.write_file, self._file, scene.data_bytes, scene.progress)
        scene.digest = await data.in_thread(work)
        return f"sha256 {scene.digest[:16]}…, synced"

    async def _remount(self) -> str:
        scene = self._scene
        await self._unmount()
        await scene.csi.stage(scene.volume_id, self._staging, fs_type=self._fs_type)
        await self._mount()
        return f"{_mounted_device(self._staging)}, nothing formatted again"

    async def _verify(self) -> str:
        scene = self._scene
        scene.check(await data.in_thread(partial(data.hash_file, self._file, scene.progress)))
        return f"sha256 {scene.digest[:16]}… is the same"

    async def _expand(self) -> str:
        scene = self._scene
        before = _filesystem_bytes(self._target)
        answer = await scene.csi.expand(scene.volume_id, 2 * scene.size_bytes)
        if answer.node_expansion_required:
            await scene.csi.node_expand(scene.volume_id, self._target)
        after = _filesystem_bytes(self._target)
        if after < before * 1.5:
            raise DemoFailed(f"the filesystem has {size(after)}, it had {size(before)} before it was expanded")
        return f"filesystem {size(before)} -> {size(after)}"

    async def _stats(self) -> str:
        answer = await self._scene.csi.stats(self._scene.volume_id, self._target)
        usage = answer.usage[0]
        if usage.used < self._scene.data_bytes:
            raise DemoFailed(f"{size(usage.used)} used is less than the {size(self._scene.data_bytes)} written")
        return f"{size(usage.used)} used, {size(usage.available)} available of {size(usage.total)}"

    async def _unmount(self) -> str:
        scene = self._scene
        await scene.csi.node_unpublish(scene.volume_id, self._target)
        await scene.csi.unstage(scene.volume_id, self._staging)
        return "device gone"


def _filesystem_bytes(path: Path) -> int:
    facts = os.statvfs(path)
    return facts.f_blocks * facts.f_frsize


def _mounted_device(path: Path) -> str:
    """Device that the filesystem at `path` is on, by the number statvfs(3) and sysfs agree on."""
    number = path.stat().st_dev
    name = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
    return f"/dev/{name}"
