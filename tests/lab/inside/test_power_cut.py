"""The power is cut while volumes are in use, on a disk that the target drives and on kernel disks of each tier.

Two halves, between which the machine is reset (tests/lab/__main__.py): the second finds what the first has written.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from agent.csi.client import CsiClient
from agent.model import Volume
from agent.store.local import open_local

from .hardware import SERIALS, controller, driver, listed, quarry
from .node import MIB, Node, Pod
from .slots import Monitor
from .tools import ENDLESS, Fio, digest, patiently, until, write

FOLDER = Path("/var/lib/quarry-lab")
WRITTEN = FOLDER / "written.json"
STATE = ("--state-dir", str(FOLDER / "state"))
WHERE = {"userspace": "b", "nvme": "a", "ssd": "ssd", "hdd": "hdd"}
"""The disk of each volume."""


def node() -> Node:
    return Node("real", file_disk="64MiB:hdd", target_args=["-s", "768"], folder=FOLDER)


def pods(node: Node, client: CsiClient) -> dict[str, Pod]:
    def pod(name: str) -> Pod:
        tier = "nvme" if name == "userspace" else name
        return Pod(node, client, f"v-{name}", fs_type="ext4", size_bytes=64 * MIB, tier=tier)

    return {name: pod(name) for name in WHERE}


async def lies_on(pod: Pod) -> str:
    store = await open_local(FOLDER / "state" / "quarry.db")
    volume = await store.get(Volume, pod.volume_id)
    await store.close()
    assert volume is not None
    return volume.spec.placement[0].disk


async def until_zeroed(disk: str, timeout_s: float = 600) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        shown = json.loads(await quarry("disks", "show", disk, "-o", "json", *STATE))
        zeroing = [each["message"] for each in shown["conditions"] if each["type"] == "FreeSpaceZeroed"]
        if not zeroing:
            return
        assert time.monotonic() < deadline, zeroing
        await asyncio.sleep(1)


@pytest.mark.timeout(1800)  # disks that cannot be zeroed at once take their time
@pytest.mark.boot(1)
async def test_power_is_cut(vfio: None, hugepages: None) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    here = node()
    here.start()
    async with here.served() as client:
        mine, written = pods(here, client), dict[str, list[str]]()
        bound = json.loads(await quarry("disks", "bind", SERIALS["b"], "--yes", "-o", "json", *STATE))
        by_size = sorted(await listed(*STATE), key=lambda disk: disk["size_bytes"])
        ids = {disk["serial"]: disk["id"] for disk in by_size} | {SERIALS["b"]: bound["disks"][0]["id"]}
        for name, disk in WHERE.items():
            await quarry("disks", "claim", ids[SERIALS[disk]], "--yes", *STATE)
            await until_zeroed(ids[SERIALS[disk]])  # until then another disk of the tier has more room
            pod = mine[name]
            await pod.start()
            assert await lies_on(pod) == ids[SERIALS[disk]], name
            written[name] = [ids[SERIALS[disk]], pod.volume_id, write(pod.target / "kept", 4 * MIB)]
        # QEMU's AHCI refuses commands under many writers: those disks only hold what was written before.
        busy = [Fio(mine[name].file, size="16m", options=ENDLESS | {"fsync": 32}) for name in ("userspace", "nvme")]
        for fio in busy:
            await fio.__aenter__()
        with WRITTEN.open("w") as file:
            json.dump(written, file)
            file.flush()
            os.fsync(file.fileno())
        for fio in busy:
            await fio.goes_on()
        Monitor().cut_power()
        await asyncio.sleep(60)
    pytest.fail("the power was not cut")


@pytest.mark.timeout(1800)
@pytest.mark.boot(2)
async def test_all_is_there_after_the_power_cut(vfio: None, hugepages: None) -> None:
    written = json.loads(WRITTEN.read_text())
    address = controller(SERIALS["b"])
    assert driver(address) == "nvme", "the kernel gives every disk to its own driver first"
    here = node()
    here.start()
    try:
        async with here.served() as client:
            await until(lambda: driver(address), lambda name: name == "vfio-pci", 120)
            for name, pod in pods(here, client).items():
                _, pod.volume_id, kept = written[name]
                await patiently(pod.attach, 180)
                assert digest(pod.target / "kept") == kept
                await pod.detach()
                await pod.check()
                await client.delete_volume(pod.volume_id)
        await quarry("disks", "release", *(disk for disk, _, _ in written.values()), *STATE)
        await quarry("disks", "unbind", address, "--yes", *STATE)
    finally:
        print(f"--- agent log\n{here.log()[-20000:]}")
        here.close()
