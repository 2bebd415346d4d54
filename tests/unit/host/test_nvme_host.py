"""NVMe/TCP on the host: a sysfs tree as Linux 6.12 shows it, and a stand-in for the kernel that changes it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition, Unavailable
from agent.host.nvme_host import NvmeHost, host_id
from agent.model import ConnectOptions

NQN = "nqn.2026-11.storage.quarry:vol:vol-0123456789abcdef0123456789abcdef"
UUID = "7c2b9fd0-6fe2-4f5c-9a6a-0d8a4d0f3c11"
OTHER_UUID = "11111111-2222-3333-4444-555555555555"
HOST_NQN = "nqn.2014-08.org.nvmexpress:uuid:00000000-1111-2222-3333-444444444444"


def write(directory: Path, **attributes: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in attributes.items():
        (directory / name).write_text(value + "\n")


def add_controller(top: Path, number: int, nqn: str = NQN, state: str = "live", port: int = 4420) -> None:
    write(
        top / f"sys/class/nvme/nvme{number}",
        subsysnqn=nqn,
        state=state,
        transport="tcp",
        address=f"traddr=127.0.0.1,trsvcid={port},src_addr=127.0.0.1",
    )


def add_namespace(top: Path, number: int, nqn: str = NQN, uuid: str = UUID, sectors: int = 131072) -> None:
    """As with native multipath: the head in the subsystem, the hidden path in the controller."""
    subsystem = top / f"sys/class/nvme-subsystem/nvme-subsys{number}"
    write(subsystem, subsysnqn=nqn)
    write(subsystem / f"nvme{number}n1", uuid=uuid, size=str(sectors), nsid="1")
    write(top / f"sys/class/nvme/nvme{number}/nvme{number}c{number}n1", size=str(sectors))
    (top / "dev").mkdir(parents=True, exist_ok=True)
    (top / f"dev/nvme{number}n1").touch()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty tree, with the stand-in on PATH."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    top = tmp_path / "tree"
    for name in ("sys/class/nvme", "sys/class/nvme-subsystem", "dev", "bin"):
        (top / name).mkdir(parents=True)
    (top / "dev/nvme-fabrics").touch()
    (top / "bin/tee").symlink_to(Path(__file__).with_name("tee-stand-in"))
    monkeypatch.setenv("NVME_TREE", str(top))
    monkeypatch.setenv("PATH", f"{top / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return top


def calls(tree: Path) -> list[str]:
    file = tree / "calls"
    return file.read_text().splitlines() if file.exists() else []


def host(tree: Path) -> NvmeHost:
    return NvmeHost(tree / "sys", tree / "dev")


def test_tree_is_read(tree: Path) -> None:
    add_controller(tree, 0, nqn="nqn.other")
    add_namespace(tree, 0, nqn="nqn.other", uuid=OTHER_UUID)
    add_controller(tree, 1, state="connecting", port=4421)
    add_namespace(tree, 1)
    found = host(tree)
    (controller,) = found.controllers(NQN)
    assert (controller.name, controller.state, controller.address, controller.port) == (
        "nvme1",
        "connecting",
        "127.0.0.1",
        4421,
    )
    assert found.find(NQN, UUID.upper()) == tree / "dev/nvme1n1"
    assert found.find(NQN, OTHER_UUID) is None
    assert found.find("nqn.other", UUID) is None
    assert found.size_bytes(NQN, UUID) == 64 << 20
    assert found.connected(HOST_NQN) == [
        "nqn.2026-11.storage.quarry:vol:vol-0123456789abcdef0123456789abcdef",
        "nqn.other",
    ]


def test_namespace_of_the_controller_without_multipath(tree: Path) -> None:
    add_controller(tree, 3)
    write(tree / "sys/class/nvme/nvme3/nvme3n1", uuid=UUID, size="8")
    (tree / "dev/nvme3n1").touch()
    assert host(tree).find(NQN, UUID) == tree / "dev/nvme3n1"


def test_no_nvme_at_all(tmp_path: Path) -> None:
    found = NvmeHost(tmp_path / "sys", tmp_path / "dev")
    assert found.controllers(NQN) == []
    assert found.find(NQN, UUID) is None


async def test_connect_gives_all_the_parameters_and_the_device_appears(tree: Path) -> None:
    add_controller(tree / "after", 2)
    add_namespace(tree / "after", 2)
    found = host(tree)
    await found.connect(NQN, "127.0.0.1", 4420, HOST_NQN)
    assert await found.wait_for_device(NQN, UUID, 1) == tree / "dev/nvme2n1"
    assert calls(tree) == [
        f"{tree}/dev/nvme-fabrics transport=tcp,traddr=127.0.0.1,trsvcid=4420,nqn={NQN},hostnqn={HOST_NQN},"
        "hostid=00000000-1111-2222-3333-444444444444,ctrl_loss_tmo=-1,reconnect_delay=1,keep_alive_tmo=5"
    ]


async def test_connect_as_the_class_of_the_volume_says(tree: Path) -> None:
    await host(tree).connect(NQN, "127.0.0.1", 4420, HOST_NQN, ConnectOptions(600, 2, 30, 4))
    (call,) = calls(tree)
    assert call.endswith("ctrl_loss_tmo=600,reconnect_delay=2,keep_alive_tmo=30,nr_io_queues=4")


@pytest.mark.parametrize("state", ["live", "connecting", "resetting", "new"])
async def test_connected_already_is_left_alone(tree: Path, state: str) -> None:
    add_controller(tree, 0, state=state)
    await host(tree).connect(NQN, "127.0.0.1", 4420, HOST_NQN)
    assert calls(tree) == []


@pytest.mark.parametrize(("state", "port"), [("deleting", 4420), ("dead", 4420), ("live", 4499)])
async def test_dying_or_elsewhere_is_not_connected(tree: Path, state: str, port: int) -> None:
    add_controller(tree, 0, state=state, port=port)
    await host(tree).connect(NQN, "127.0.0.1", 4420, HOST_NQN)
    assert len(calls(tree)) == 1


async def test_refused_connection_is_unavailable(tree: Path) -> None:
    (tree / "refuse").write_text("tee: /dev/nvme-fabrics: Input/output error")
    with pytest.raises(Unavailable, match="Input/output error"):
        await host(tree).connect(NQN, "127.0.0.1", 4420, HOST_NQN)


async def test_kernel_without_nvme_tcp_says_the_remedy(tree: Path) -> None:
    (tree / "dev/nvme-fabrics").unlink()
    with pytest.raises(FailedPrecondition, match="modprobe nvme-tcp"):
        await host(tree).connect(NQN, "127.0.0.1", 4420, HOST_NQN)
    assert calls(tree) == []


async def test_waiting_ends_with_the_states(tree: Path) -> None:
    add_controller(tree, 0, state="connecting")
    add_namespace(tree, 0, uuid=OTHER_UUID)
    with pytest.raises(Unavailable, match=f"nvme0 connecting; namespaces: {OTHER_UUID}"):
        await host(tree).wait_for_device(NQN, UUID, 0.05)


async def test_disconnect_waits_and_is_repeatable(tree: Path) -> None:
    add_controller(tree, 0)
    for _ in range(2):
        await host(tree).disconnect(NQN)
    assert calls(tree) == ["nvme0/delete_controller 1"]


async def test_connections_to_an_old_place_end_once_the_new_one_lives(tree: Path) -> None:
    add_controller(tree, 0, port=4499)
    add_controller(tree, 1, state="connecting")
    await host(tree).disconnect_others(NQN, "127.0.0.1", 4420)
    assert calls(tree) == []
    add_controller(tree, 1, state="live")
    await host(tree).disconnect_others(NQN, "127.0.0.1", 4420)
    assert calls(tree) == ["nvme0/delete_controller 1"]


async def test_rescan_asks_live_controllers_only(tree: Path) -> None:
    add_controller(tree, 0)
    add_controller(tree, 1, state="connecting")
    await host(tree).rescan(NQN)
    assert calls(tree) == ["nvme0/rescan_controller 1"]


def test_host_id_is_stable() -> None:
    assert host_id(HOST_NQN) == "00000000-1111-2222-3333-444444444444"
    assert host_id("nqn.2026-11.example:host") == host_id("nqn.2026-11.example:host")
    assert host_id("nqn.2026-11.example:host") != host_id("nqn.2026-11.example:other")
