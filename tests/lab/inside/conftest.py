"""Targets and exported disks for the tests in the machine."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from agent.csi.client import CsiClient
from agent.csi.pb import csi_pb2 as csi
from tests.contract.targets import Target, find_spdk_tgt

from .exports import Exports
from .node import MIB, Node, Pod

SIZES = {"ext4": 64 * MIB, "xfs": 320 * MIB, "btrfs": 128 * MIB}
"""Of a volume that is large enough for the filesystem."""
MakePod = Callable[..., Awaitable[Pod]]
_numbers = itertools.count(1)

if "QUARRY_LAB" not in os.environ:  # these tests need a machine of their own: `make lab`
    collect_ignore_glob = ["test_*.py"]


BOOT = int(os.environ.get("QUARRY_LAB_BOOT", "0"))
"""Whether the power is about to be cut, or has been (tests/lab/__main__.py)."""

NEWER = (6, 15)
"""Linux 6.12 can crash when a ublk server is killed: what has ublk runs on a machine with a newer one."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "boot(number): before (1) or after (2) a power cut")
    config.addinivalue_line("markers", "ublk: runs with a real target, on a machine with a newer kernel")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each machine runs what is for its kernel; `make lab` looks for what is said about the rest.

    pytest hands every conftest the items of the whole run: without a machine of their own there are none of these.
    """
    if "QUARRY_LAB" not in os.environ:
        return
    newer = tuple(int(number) for number in os.uname().release.split(".")[:2]) >= NEWER
    ublk = [item for item in items if item.get_closest_marker("ublk") and "[embedded" not in item.name]
    cut = [item for item in items if item.get_closest_marker("boot")]
    if ublk and not newer and BOOT == 0:
        print(f"{len(ublk)} tests are left to a newer kernel", flush=True)
    if cut and not newer and BOOT == 0:
        print(f"{len(cut)} tests wait for a power cut", flush=True)
    if BOOT:
        mine = [item for item in cut if item.get_closest_marker("boot").args == (BOOT,)]
    elif newer:
        mine = ublk
    else:
        mine = [item for item in items if not item.get_closest_marker("ublk") and item not in cut]
    config.hook.pytest_deselected(items=[item for item in items if item not in mine])
    items[:] = mine


@pytest.fixture(scope="session")
def vfio() -> None:
    assert os.system("modprobe vfio-pci") == 0


@pytest.fixture
def hugepages() -> Iterator[None]:
    if find_spdk_tgt() is None:
        pytest.skip("no spdk_tgt where the lab was started (SPDK_TGT or PATH)")
    number, folder = Path("/proc/sys/vm/nr_hugepages"), Path("/dev/hugepages")
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "hugetlbfs", "none", folder], check=True)
    Path("/proc/sys/vm/compact_memory").write_text("1")
    number.write_text("512\n")
    assert int(number.read_text()) >= 400, "the machine has no memory for hugepages"
    yield
    subprocess.run(["umount", folder], check=True)
    number.write_text("0\n")


@pytest.fixture(scope="module", params=["embedded", "real"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of a module's target, which ends with it: a real one that nobody needs would go on taking a processor."""
    chosen: str = request.param
    if chosen == "real" and find_spdk_tgt() is None:
        pytest.skip("no spdk_tgt where the lab was started (SPDK_TGT or PATH)")
    return chosen


@pytest.fixture(scope="module")
def target(kind: str) -> Iterator[Target]:
    target = Target(kind)
    try:
        target.start()
        yield target
    finally:
        target.close()


@pytest.fixture
async def exports(target: Target) -> AsyncIterator[Exports]:
    """Disks of this test, exported by the target; disconnected and gone at the end."""
    async with Exports(target) as exports:
        yield exports


@pytest.fixture(autouse=True)
def kernel_log() -> Iterator[None]:
    """The kernel never warns (lockdep, hung task, BUG), whatever a test does."""
    Path("/dev/kmsg").write_text("quarry-lab: test begins\n")
    yield
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    lines: list[str] = []
    try:
        while True:
            lines.append(os.read(descriptor, 8192).decode(errors="replace"))
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
    begins = max(index for index, line in enumerate(lines) if "quarry-lab: test begins" in line)
    bad = [line for line in lines[begins:] if any(word in line for word in ("BUG:", "WARNING:", "blocked for more"))]
    assert not bad, "".join(bad)


@pytest.fixture(scope="module")
def node(kind: str) -> Iterator[Node]:
    with Node(kind).running() as node:
        yield node


@pytest.fixture
async def client(node: Node) -> AsyncIterator[CsiClient]:
    async with node.served() as client:
        yield client


@pytest.fixture
async def pod(node: Node, client: CsiClient) -> AsyncIterator[MakePod]:
    """Makes a volume and takes it to its pod."""
    made: list[Pod] = []

    async def make(
        fs_type: str = "",
        size_bytes: int = 64 * MIB,
        frontend: str = "nvme-tcp",
        source: csi.VolumeContentSource | None = None,
        parameters: dict[str, str] | None = None,
    ) -> Pod:
        pod = Pod(node, client, f"v{next(_numbers)}", fs_type=fs_type, size_bytes=size_bytes, frontend=frontend)
        pod.parameters |= parameters or {}
        made.append(pod)
        await pod.start(source)
        return pod

    yield make
    left = [await each.sweep() for each in made]
    for each in reversed(made):
        if each.volume_id:
            await client.unpublish(each.volume_id)
            await client.delete_volume(each.volume_id)
    assert not any(left), left
