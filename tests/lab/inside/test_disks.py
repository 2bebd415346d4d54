"""The disks of the machine (tests/lab/hardware.py): what is found, and an NVMe disk that the target drives itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .hardware import SERIALS, by_path, controller, driver, give_back, listed, quarry, replug
from .node import MIB, Node, Pod
from .tools import digest, patiently, run, until, write


def shell(command: str) -> None:
    subprocess.run(["bash", "-e", "-c", command], check=True)


@pytest.fixture(scope="module")
def contents() -> Iterator[None]:
    """Something on those disks that are named after it."""
    ext4, lvm = by_path("wwn-0x5000c50000000001"), by_path("wwn-0x5000c50000000002")
    shell(f"printf 'label: gpt\\n;\\n' | sfdisk --quiet --wipe always {ext4}; udevadm settle; mkfs.ext4 -q {ext4}1")
    shell(f"vgcreate -q labvg {lvm}; lvcreate -q -Wn -Zn -n lv0 -L 64M labvg; udevadm settle")
    yield
    shell("vgremove -q -f labvg")


# model or serial number, transport, tier, MiB, claimable, codes of the reasons
TABLE: list[tuple[str, str, str, int, list[str]]] = [
    ("LABNVMEA0001 1", "nvme", "nvme", 2048, []),
    ("LABNVMEA0001 2", "nvme", "nvme", 1024, []),
    ("LABNVMEB0001 1", "nvme", "nvme", 2048, []),
    ("LABSSD0001", "sata", "ssd", 2048, []),
    ("LABHDD0001", "sata", "hdd", 4096, []),
    ("EXT4", "scsi", "ssd", 512, ["size", "partitions", "content"]),
    ("LVM", "scsi", "ssd", 256, ["size", "held", "content"]),
    ("READONLY", "scsi", "ssd", 1280, ["read-only"]),
    ("TINY", "scsi", "ssd", 8, ["size"]),
    ("LABUSB0001", "usb", "ssd", 1536, ["removable"]),
]


def who(disk: dict[str, Any]) -> str:
    if disk["transport"] == "nvme":
        return f"{disk['serial']} {Path('/sys/class/block', disk['name'], 'nsid').read_text().strip()}"
    return str(disk["model"] if disk["model"] in {row[0] for row in TABLE} else disk["serial"])


async def test_every_disk_is_found_as_what_it_is(contents: None) -> None:
    found = {who(disk): disk for disk in await listed()}
    for name, transport, tier, size_mib, codes in TABLE:
        disk = found.get(name)
        assert disk is not None, f"{name} is not in {sorted(found)}"
        seen = (disk["transport"], disk["tier"], disk["size_bytes"] >> 20, disk["reason_codes"])
        assert seen == (transport, tier, size_mib, codes), (name, disk["reasons"])
        assert disk["eligible"] is (not codes)
        assert disk["id"], name
    root = next(disk for disk in found.values() if "/" in disk["mount_points"])
    assert {"boot", "mounted", "content"} <= set(root["reason_codes"])
    assert found["EXT4"]["partitions"] == [Path(found["EXT4"]["path"]).name + "1"]
    assert found["LVM"]["holders"] == ["dm-0"]
    namespaces = [found[f"LABNVMEA0001 {nsid}"] for nsid in (1, 2)]
    assert len({disk["id"] for disk in namespaces}) == 2
    assert {tuple(disk["pci_addresses"]) for disk in namespaces} == {(controller("LABNVMEA0001"),)}


async def test_a_recording_of_the_machine_shows_the_same(contents: None, tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    await quarry("disks", "record", str(file))
    assert await listed("--recording", str(file)) == await listed()


async def test_a_controller_goes_and_comes_back_with_all_its_namespaces(vfio: None, tmp_path: Path) -> None:
    address, state = controller(SERIALS["a"]), ["--state-dir", str(tmp_path)]
    before = {disk["id"]: disk for disk in await listed() if disk["serial"] == SERIALS["a"]}
    planned = json.loads(await quarry("disks", "bind", SERIALS["a"], "--dry-run", "-o", "json", *state))
    assert [step["action"] for step in planned["steps"]] == ["note", "override", "unbind", "probe", "note"]
    assert (driver(address), [*tmp_path.iterdir()]) == ("nvme", [])  # noqa: ASYNC240

    done = json.loads(await quarry("disks", "bind", SERIALS["a"], "--yes", "-o", "json", *state))
    assert {disk["id"] for disk in done["disks"]} == before.keys()
    assert driver(address) == "vfio-pci"
    away = {disk["id"]: disk for disk in await listed(*state) if disk["serial"] == SERIALS["a"]}
    assert {disk["name"] for disk in away.values()} == {f"{address}n1", f"{address}n2"}
    assert {disk["driver"] for disk in away.values()} == {"userspace"}
    assert away.keys() == before.keys()

    await quarry("disks", "unbind", f"{address}n2", "--yes", *state)
    assert driver(address) == "nvme"
    await run("udevadm", "settle")
    back = {disk["id"]: disk for disk in await listed(*state) if disk["serial"] == SERIALS["a"]}
    assert back.keys() == before.keys()
    assert all(disk["eligible"] and disk["driver"] == "kernel" for disk in back.values())


async def test_a_mounted_namespace_keeps_the_controller(vfio: None, tmp_path: Path) -> None:
    address = controller(SERIALS["a"])
    (first,) = [disk for disk in await listed() if who(disk) == f"{SERIALS['a']} 1"]
    (other,) = [disk for disk in await listed() if who(disk) == f"{SERIALS['a']} 2"]
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    await run("mkfs.ext4", "-q", other["path"])
    await run("mount", other["path"], mounted)
    try:
        with pytest.raises(Exception, match=f"{other['name']} is mounted at {mounted}"):
            await quarry("disks", "bind", first["path"], "--yes", "--state-dir", str(tmp_path))
    finally:
        await run("umount", mounted)
        await run("wipefs", "--all", other["path"])
        await run("blkdiscard", "--zeroout", other["path"])
    assert driver(address) == "nvme"


async def test_what_dies_while_a_controller_is_moved_is_finished_or_taken_back(vfio: None, tmp_path: Path) -> None:
    address = controller(SERIALS["b"])
    argv = [sys.executable, "-m", "tests.lab.inside.dying", str(tmp_path / "bindings"), address]
    lines = [json.loads(line) for line in (await run(*argv, timeout_s=1800)).splitlines()]
    deaths = {(line["move"], line["step"], line["before"]): line for line in lines if "move" in line}
    assert len(deaths) == 20
    for (move, step, before), line in deaths.items():
        print(line)
        assert (line["died"], line["recovered"]) == (-9, 0), line
        let_go = step > 3 or (step == 3 and not before)
        if move == "bind":
            wanted = ["vfio-pci", "vfio-pci", "bound"] if let_go else ["nvme", ""]
        else:
            wanted = ["vfio-pci", "vfio-pci", "bound"] if (step, before) == (1, True) else ["nvme", ""]
        assert line["after"] == wanted, line
    assert lines[-1] == {"end": ["nvme", ""]}


# --- with a real target ---


@pytest.fixture
def own_node(vfio: None, hugepages: None) -> Iterator[Node]:
    """An agent whose only NVMe disk is the one that the test gives it."""
    address = controller(SERIALS["b"])
    with Node("real", file_disk="64MiB:hdd", target_args=["-s", "768"]).running() as node:
        yield node
    give_back(address)


async def until_healthy(disk: str, state: list[str]) -> None:
    """The target has been asked for the health of a disk that it drives, and the agent has told."""
    deadline = time.monotonic() + 120
    while True:
        shown = json.loads(await quarry("disks", "show", disk, "-o", "json", *state))
        if shown["health"] == "Healthy":
            return
        assert time.monotonic() < deadline, shown


async def test_volumes_are_served_from_a_disk_that_the_target_drives(own_node: Node) -> None:
    node, state = own_node, ["--state-dir", str(own_node.folder / "state")]
    address = controller(SERIALS["b"])
    async with node.served() as client:
        claim = ["disks", "claim", SERIALS["b"], "--driver", "userspace", "--yes", "-o", "json"]
        (claimed,) = json.loads(await quarry(*claim, *state))
        identity = claimed["id"]
        assert driver(address) == "vfio-pci"
        pod = Pod(node, client, "v-userspace", fs_type="ext4", size_bytes=64 * MIB)
        await pod.start()
        try:
            written = write(pod.file, 8 * MIB)
            await until_healthy(identity, state)
            with pytest.raises(Exception, match="is in use by"):
                await quarry("disks", "unbind", address, "--yes", *state)

            # The target forgets the controller, the agent attaches it again.
            node.kill_target()
            await until(lambda: node.states(pod.volume_id), lambda states: states == ["live"], 120)
            assert digest(pod.file) == written

            # As after a reboot: the kernel's own driver has the disk, and the agent is new.
            await pod.detach()
            node.kill_agent()
            node.kill_target(again=False)
            replug(address)
            await until(lambda: driver(address), lambda name: name == "nvme")
            await run("udevadm", "settle")
            node.start_target()
            node.start_agent()
            await node.ready(client)
            await until(lambda: driver(address), lambda name: name == "vfio-pci", 120)
            await patiently(pod.attach, 180)
            assert digest(pod.file) == written
        finally:
            await pod.sweep()
        await pod.detach()
        await client.delete_volume(pod.volume_id)
        shown = json.loads(await quarry("disks", "show", f"{address}n1", "-o", "json", *state))
        assert (shown["id"], shown["driver"]) == (identity, "userspace")
        await quarry("disks", "release", identity, *state)
        # The kernel had it to make it blank, and no program drives it now.
        assert driver(address) == "vfio-pci"
        await quarry("disks", "unbind", address, "--yes", *state)
    assert driver(address) == "nvme"
    await run("udevadm", "settle")
    (back,) = [disk for disk in await listed(*state) if disk["id"] == identity]
    assert back["eligible"], back["reasons"]


async def test_volumes_are_served_from_kernel_disks_of_each_tier(own_node: Node) -> None:
    node, state = own_node, ["--state-dir", str(own_node.folder / "state")]
    disks = {"nvme": SERIALS["b"], "ssd": SERIALS["ssd"], "hdd": SERIALS["hdd"]}
    async with node.served() as client:
        claimed = json.loads(await quarry("disks", "claim", *disks.values(), "--yes", "-o", "json", *state))
        assert len(claimed) == len(disks)
        pods, written = list[Pod](), list[str]()
        try:
            for tier in disks:
                pod = Pod(node, client, f"v-{tier}", fs_type="ext4", size_bytes=64 * MIB, tier=tier)
                pods.append(pod)
                await pod.start()
                written.append(write(pod.file, 8 * MIB))
                await pod.detach()
            node.kill_agent()
            node.kill_target()
            node.start_agent()
            await node.ready(client)
            for pod, digest_before in zip(pods, written, strict=True):
                await patiently(pod.attach, 180)  # the agent answers before it has looked at all disks
                assert digest(pod.file) == digest_before
                await pod.detach()
                await client.delete_volume(pod.volume_id)
        finally:
            for pod in pods:
                await pod.sweep()
        await quarry("disks", "release", *disks.values(), *state)
    found = {disk["serial"]: disk for disk in await listed(*state)}
    assert all(found[serial]["eligible"] for serial in disks.values()), found
