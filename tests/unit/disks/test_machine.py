"""The real thing: udev and sysfs of this machine, with loop devices as disks that can be changed at will."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.disks.inventory import Change, Inventory
from agent.disks.machine import Machine
from agent.disks.watch import Watch

from .test_discovery import codes

GIB = 1 << 30
ROOT = Path(__file__).resolve().parents[3]

Attach = Callable[..., str]


def run(*argv: str | Path) -> str:
    return subprocess.run(list(map(str, argv)), check=True, capture_output=True, text=True, timeout=30).stdout.strip()


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Attach]:
    """Makes a loop device, of a new sparse file of 2 GiB or of the path given; returns its kernel name."""
    if os.geteuid() != 0 or shutil.which("losetup") is None or not Path("/dev/loop-control").exists():
        pytest.skip("needs root, losetup and loop devices")
    made = list[str]()

    def make(content: bytes = b"", *options: str, path: Path | None = None) -> str:
        if path is None:
            path = tmp_path / f"disk{len(made)}"
            with path.open("wb") as file:
                file.write(content)
                file.truncate(2 * GIB)
        made.append(run("losetup", "--find", "--show", *options, path))
        return Path(made[-1]).name

    try:
        yield make
    finally:
        for device in reversed(made):
            subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)


def partition_table() -> bytes:
    """A master boot record with one Linux partition."""
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\xfe\xff\xff", 2048, 2 * GIB // 512 - 2048)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


async def test_what_the_kernel_has_is_found_and_its_boot_disk_is_refused() -> None:
    machine = Machine()
    inventory = Inventory(machine)
    await inventory.scan()
    assert set(inventory.known) <= {*machine.names()}
    # Loop devices come and go beside this test.
    for known in (each for each in inventory.known.values() if each.status.transport != "loop"):
        assert known.status.size_bytes == int(machine.read(f"class/block/{known.name}/size") or 0) * 512
        assert known.status.disk_sequence > 0 or machine.read(f"class/block/{known.name}/diskseq") is None
        if "/" in known.status.mount_points:
            assert not known.status.eligible
            assert {"boot", "mounted"} <= set(codes(known).split())


@pytest.mark.root
async def test_blank_partitioned_formatted_mounted_readonly_and_stacked(attach: Attach, tmp_path: Path) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4")
    blank, table, formatted, mounted = attach(), attach(partition_table()), attach(), attach()
    readonly = attach(b"", "--read-only")
    top = attach(path=Path(f"/dev/{blank}"))
    for name in (formatted, mounted):
        run("mkfs.ext4", "-q", "-L", "mine", f"/dev/{name}")
    target = tmp_path / "mnt"
    target.mkdir()
    run("mount", f"/dev/{mounted}", target)
    try:
        inventory = Inventory(Machine())
        await inventory.scan()
    finally:
        run("umount", target)
    known = inventory.known
    assert codes(known[blank]) == "kind loop"
    assert codes(known[top]) == "kind"
    assert "partition table" in known[table].status.signatures[0]
    assert "content" in codes(known[table])
    assert codes(known[formatted]) == "kind content"
    assert known[formatted].status.signatures == ("a ext4 filesystem labelled 'mine'",)
    assert codes(known[mounted]) == "kind mounted content"
    assert known[mounted].status.mount_points == (str(target),)
    assert codes(known[readonly]) == "kind read-only"
    status = known[blank].status
    assert (status.transport, status.rotational, status.tier) == ("loop", known[top].status.rotational, "ssd")
    assert (status.size_bytes, status.block_bytes, status.signatures) == (2 * GIB, 512, ())
    assert status.path == f"/dev/{blank}"


@pytest.mark.root
async def test_events_of_this_machine_arrive(attach: Attach) -> None:
    machine, told = Machine(), list[Change]()
    inventory = Inventory(machine)
    ready, news = asyncio.Event(), asyncio.Event()

    def report(changes: object) -> None:
        told.extend(changes)  # type: ignore[arg-type]
        news.set()

    async def until(kind: str, name: str) -> Change:
        async with asyncio.timeout(10):
            while True:
                for change in told:
                    if (change.kind, change.known.name) == (kind, name):
                        return change
                news.clear()
                await news.wait()

    watching = asyncio.create_task(Watch(machine, inventory, settle_s=0.05, rescan_s=600).run(report, ready.set))
    try:
        async with asyncio.timeout(60):
            await ready.wait()
        told.clear()
        name = await asyncio.to_thread(attach)
        added = await until("added", name)
        assert codes(added.known) == "kind"
        await asyncio.to_thread(run, "losetup", "--detach", f"/dev/{name}")
        await until("removed", name)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


async def test_whoever_stops_listening_leaves_no_socket_behind() -> None:
    machine = Machine()
    machine.subscribe(lambda event: None)()
    before = descriptors()
    for _ in range(20):
        end = machine.subscribe(lambda event: None)
        end()
        end()
    assert descriptors() == before


HOSTILE = rb"""S:disk/by-id/good
I:12345
E:ID_SERIAL=bad%b
E:ID_MODEL=a model
E:NAME%b=x
E:ID_FS_TYPE=%b
E:NO_EQUALS_SIGN
G:systemd
V:1
""".replace(b"%b", b"\xff\xfe")

CHILD = """
import asyncio, json, sys
from agent.disks.inventory import Inventory
from agent.disks.machine import Machine
machine = Machine()
inventory = Inventory(machine)
asyncio.run(inventory.scan())
status = inventory.known[sys.argv[1]].status
print(json.dumps([dict(machine.properties(sys.argv[1])), status.model, status.links, status.mount_points]))
"""


@pytest.mark.root
def test_a_database_of_udev_with_bytes_that_are_no_text(attach: Attach) -> None:
    """In a mount namespace of its own, so that nobody else sees this database."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    name = attach()
    number = Path(f"/sys/class/block/{name}/dev").read_text().strip()
    script = (
        "mount -t tmpfs none /run && mkdir -p /run/udev/data && touch /run/udev/control && "
        'cat >"/run/udev/data/b$1" && exec "$2" -c "$3" "$4"'
    )
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", number, sys.executable, CHILD, name]
    done = subprocess.run(argv, input=HOSTILE, capture_output=True, timeout=60, cwd=ROOT)
    if b"unshare failed" in done.stderr or b"mount:" in done.stderr:
        pytest.skip("mount namespaces cannot be made here")
    assert done.returncode == 0, done.stderr
    properties, model, links, _ = json.loads(done.stdout)
    assert properties["ID_MODEL"] == model == "a model"
    assert "ID_SERIAL" not in properties
    assert "ID_FS_TYPE" not in properties
    assert links == ["/dev/disk/by-id/good"]


LISTEN = """
import asyncio, socket, sys
from pathlib import Path
from agent.disks.machine import Machine

async def main(name, control, state):
    if state != "none":
        daemon = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        daemon.bind(control)
        if state == "dead":
            daemon.close()
        else:
            daemon.listen()
    seen = asyncio.Event()
    end = Machine().subscribe(lambda event: seen.set() if event.disk == name else None)
    if state == "dies":
        daemon.close()
    Path(f"/sys/class/block/{name}/uevent").write_text("change")
    try:
        await asyncio.wait_for(seen.wait(), 2)
        print("seen")
    except TimeoutError:
        print("not seen")
    end()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.root
@pytest.mark.parametrize(
    ("daemon", "seen"), [("none", "seen"), ("dead", "seen"), ("dies", "seen"), ("serves", "not seen")]
)
def test_without_udevs_daemon_the_kernel_tells_of_changes(attach: Attach, daemon: str, seen: str) -> None:
    """One that is killed leaves its socket behind. One that serves passes events on itself, when it knows the device;
    here it is a socket that passes nothing on, in a /run that nobody else sees."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    name = attach()
    script = 'mount -t tmpfs none /run && mkdir /run/udev && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", LISTEN]
    done = subprocess.run([*argv, name, "/run/udev/control", daemon], capture_output=True, timeout=60, cwd=ROOT)
    if b"unshare failed" in done.stderr or b"mount:" in done.stderr:
        pytest.skip("mount namespaces cannot be made here")
    if done.stdout == b"seen\n" and daemon == "serves":
        pytest.skip("a daemon of this machine passes events on")
    assert (done.stdout.decode().strip(), done.stderr.decode()) == (seen, "")


@pytest.mark.root
def test_a_mount_that_only_the_host_has_is_seen(attach: Attach, tmp_path: Path) -> None:
    """As from a container that shares the host's processes: the mount is in another mount namespace."""
    if shutil.which("unshare") is None or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs unshare and mkfs.ext4")
    name, target = attach(), tmp_path / "mnt"
    run("mkfs.ext4", "-q", f"/dev/{name}")
    target.mkdir()
    run("mount", f"/dev/{name}", target)
    try:
        if str(target) not in Path("/proc/1/mountinfo").read_text():
            pytest.skip("needs the mount namespace of process 1")
        script = 'umount "$1" && exec "$2" -c "$3" "$4"'
        argv = ["unshare", "--mount", "sh", "-c", script, "sh", target, sys.executable, CHILD, name]
        done = subprocess.run(argv, capture_output=True, timeout=60, cwd=ROOT)
    finally:
        run("umount", target)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[3] == [str(target)]


@pytest.mark.root
async def test_the_node_of_another_device_is_not_read(attach: Attach) -> None:
    one, two = attach(), attach(b"something")
    machine = Machine()
    assert (await machine.look(one, f"/dev/{one}")).content is not None
    assert "node of another device" in (await machine.look(one, f"/dev/{two}")).problem
    assert "no device node" in (await machine.look(one, "/dev/absent")).problem
    assert "no device node" in (await machine.look(one, __file__)).problem
