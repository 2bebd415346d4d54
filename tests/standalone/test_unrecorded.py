"""Data of which the database knows nothing, as after a backup was restored: named, brought back, destroyed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.config.settings import Settings
from agent.csi.client import CallFailed, CsiClient
from agent.daemon.standalone import Standalone
from agent.model import Disk, Volume
from agent.store.local import open_local

MIB = 1 << 20


async def test_adopted_and_discarded(settings: Callable[..., Settings], folder: Path) -> None:
    chosen = settings(f"{folder}/d.img:128MiB:ssd")
    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        kept, lost = [await csi.create_volume(name, 8 * MIB, {"tier": "ssd"}) for name in ("kept", "lost")]
    store = await open_local(chosen.state_dir / "quarry.db")
    for name in (kept, lost):
        await store.delete(Volume, name)
    await store.close()

    async with Standalone(chosen) as node, CsiClient(chosen.csi_endpoint) as csi:
        await node.wait_ready(20)
        await told(chosen, kept, lost)
        with pytest.raises(CallFailed, match=f"quarry volumes adopt {lost}"):
            await csi.create_volume("lost", 8 * MIB, {"tier": "ssd"})
        refused = await quarry(chosen, "discard", lost)
        assert (refused.returncode, "--yes" in refused.stderr) == (2, True), refused
        absent = await quarry(chosen, "adopt", "vol-" + 32 * "1")
        assert absent.returncode == 3, absent
        for wish, name in (("discard", lost), ("adopt", kept)):
            done = await quarry(chosen, wish, name, *(["--yes"] if wish == "discard" else []))
            assert (done.returncode, done.stderr) == (0, ""), done
            assert f"{name}  {wish}ed" in done.stdout
        await told(chosen)
        assert [each.volume.volume_id for each in (await csi.list_volumes()).entries] == [kept]
        assert await csi.create_volume("kept", 8 * MIB, {"tier": "ssd"}) == kept
        assert await csi.create_volume("lost", 8 * MIB, {"tier": "ssd"}) == lost


async def told(settings: Settings, *names: str) -> None:
    """Returns when the disk names exactly these."""
    deadline = time.monotonic() + 20
    while True:
        store = await open_local(settings.state_dir / "quarry.db")
        (disk,) = [each for each in await store.list(Disk) if each.status.transport == "file"]
        await store.close()
        conditions = {each.type for each in disk.status.conditions}
        if {each.name for each in disk.status.unrecorded} == set(names) and ("Unrecorded" in conditions) == bool(names):
            return
        assert time.monotonic() < deadline, disk
        await asyncio.sleep(0.05)


async def quarry(settings: Settings, wish: str, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "agent.cli.main", "volumes", wish, name, "--state-dir", str(settings.state_dir)]
    return await asyncio.to_thread(
        subprocess.run, [*argv, *more], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
