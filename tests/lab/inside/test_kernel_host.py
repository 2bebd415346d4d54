"""The kernel's NVMe/TCP host on a target: what the product relies on, without the agent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from agent.spdk import nvmf
from tests.contract.targets import ADDRESS

from .exports import HOST, MIB, Exports
from .tools import ENDLESS, Fio, run, until


async def test_reads_and_writes(exports: Exports, tmp_path: Path) -> None:
    export = await exports.make()
    device = await export.connect()
    assert export.states() == ["live"]
    assert export.kernel_size() == 64 * MIB

    data = os.urandom(5 * MIB)
    source, back = tmp_path / "data", tmp_path / "back"
    source.write_bytes(data)
    await run("dd", f"if={source}", f"of={device}", "bs=1M", "seek=3", "oflag=direct", "conv=fsync")
    assert (await _read(device, back, "640k"))[3 * MIB : 8 * MIB] == data
    assert export.file.read_bytes()[3 * MIB : 8 * MIB] == data

    if exports.target.kind == "embedded":  # SPDK's AIO bdevs refuse it, unless made with `fallocate`
        await run("blkdiscard", "-o", str(3 * MIB), "-l", str(MIB), device)
    await run("blkdiscard", "-z", "-o", str(5 * MIB), "-l", str(MIB), device)
    content = await _read(device, back, "1M")
    assert content[5 * MIB : 6 * MIB] == bytes(MIB)
    assert content[4 * MIB : 5 * MIB] == data[MIB : 2 * MIB]


async def _read(device: Path, to: Path, block: str) -> bytes:
    """All of the device, past the page cache."""
    await run("dd", f"if={device}", f"of={to}", f"bs={block}", "iflag=direct")
    return to.read_bytes()  # noqa: ASYNC240 - small


async def test_nvme_cli_commands(exports: Exports) -> None:
    """Every administrative command that nvme-cli users try first."""
    export = await exports.make()
    device = await export.connect()
    controller = Path("/dev", exports.host.controllers(export.nqn)[0].name)
    identified = json.loads(await run("nvme", "id-ctrl", controller, "-o", "json"))
    assert identified["subnqn"] == export.nqn
    namespace = json.loads(await run("nvme", "id-ns", device, "-o", "json"))
    assert namespace["nsze"] == 64 * MIB // 4096
    assert export.uuid in await run("nvme", "ns-descs", device)
    for command in ("smart-log", "error-log", "ana-log", "changed-ns-list-log", "list-ns"):
        await run("nvme", command, controller)
    for feature in ("0x07", "0x0b", "0x0f"):  # queues, asynchronous events, keep alive
        await run("nvme", "get-feature", controller, "-f", feature)
    await run("nvme", "flush", device, "-n", "1")
    listed = await run("nvme", "list-subsys", "-o", "json")
    assert export.nqn in listed
    found = await run(
        "nvme",
        "discover",
        "-t",
        "tcp",
        "-a",
        ADDRESS,
        "-s",
        str(export.port),
        f"--hostnqn={HOST}",
        f"--hostid={HOST[-36:]}",
    )
    assert export.nqn in found


@pytest.mark.parametrize("digests", [["--hdr-digest"], ["--hdr-digest", "--data-digest"]], ids=["header", "both"])
async def test_digests(exports: Exports, digests: list[str]) -> None:
    export = await exports.make()
    argv = ["nvme", "connect", "-t", "tcp", "-a", ADDRESS, "-s", str(export.port), "-n", export.nqn]
    await run(*argv, f"--hostnqn={HOST}", f"--hostid={HOST[-36:]}", *digests)
    device = await exports.host.wait_for_device(export.nqn, export.uuid)
    async with Fio(device, size="8m", options={"rw": "randrw", "bsrange": "4k-256k"}) as fio:
        assert (await fio.result()).error == 0


async def test_verified_random_io(exports: Exports) -> None:
    export = await exports.make()
    device = await export.connect()
    async with Fio(device, size="24m", options={"bsrange": "4k-512k", "iodepth": 32, "fsync": 64}) as fio:
        result = await fio.result()
    assert result.error == 0
    assert result.operations > 50


async def test_resize_is_seen_while_connected(exports: Exports) -> None:
    export = await exports.make(64)
    await export.connect()
    await export.resize(128 * MIB)
    assert await until(export.kernel_size, lambda size: size == 128 * MIB) == 128 * MIB


async def test_namespace_removed_and_added_while_connected(exports: Exports) -> None:
    export = await exports.make()
    await export.connect()
    await nvmf.remove_namespace(exports.rpc, export.nqn, 1)
    await until(lambda: exports.host.namespaces(export.nqn), lambda found: not found)
    await export.add_namespace()
    await exports.host.wait_for_device(export.nqn, export.uuid)
    assert export.states() == ["live"]


async def test_removed_host_is_cut_and_stays_out(exports: Exports) -> None:
    export = await exports.make()
    device = await export.connect()
    await nvmf.remove_host(exports.rpc, export.nqn, HOST)
    await until(export.states, lambda states: "live" not in states)
    assert await nvmf.get_controllers(exports.rpc, export.nqn) == []
    # A write that is waiting must neither reach the disk nor keep the connection from being taken down.
    before = export.file.read_bytes()
    writer = asyncio.create_task(run("dd", "if=/dev/urandom", f"of={device}", "bs=4k", "count=1", "oflag=direct"))
    await until(export.states, lambda states: states in (["connecting"], []))
    await exports.host.disconnect(export.nqn)
    assert export.states() == []
    with pytest.raises(Exception, match="status 1"):
        await writer
    assert export.file.read_bytes() == before


def waits_in_the_kernel(program: str) -> bool:
    """Whether a child of ours is there (state D)."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    stats = [Path("/proc", child, "stat").read_text() for child in children]
    return any(f"({program}) D" in stat for stat in stats)


async def test_a_volume_that_waits_for_ever_holds_up_no_other(exports: Exports) -> None:
    """Whoever reads a partition table keeps all others from opening the disk, and nvme-cli opens every disk."""
    shut_out, other, third = [await exports.make(8) for _ in range(3)]
    device = await shut_out.connect()
    await other.connect()
    await run("udevadm", "settle")
    await nvmf.remove_host(exports.rpc, shut_out.nqn, HOST)
    await until(shut_out.states, lambda states: "live" not in states)
    write = ("dd", "if=/dev/urandom", f"of={device}", "bs=4k", "count=1", "oflag=direct")
    waiting = [asyncio.create_task(run(*argv)) for argv in (write, ("blockdev", "--rereadpt", device))]
    await until(lambda: waits_in_the_kernel("blockdev"), bool)
    async with asyncio.timeout(60):
        await exports.host.disconnect(other.nqn)
        await third.connect()
        await exports.host.disconnect(shut_out.nqn)
    assert (other.states(), third.states(), shut_out.states()) == ([], ["live"], [])
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert all("Input/output error" in str(each) for each in ended), ended


async def test_hosts_shut_out_while_their_disks_are_read_are_detached_under_load(exports: Exports) -> None:
    """Immediately after connecting: the kernel and udev still look at the disks."""
    hogs = [await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass") for _ in range(3)]
    made = [await exports.make(8) for _ in range(6)]
    try:
        for _ in range(3):
            devices = await asyncio.gather(*(each.connect() for each in made))
            await asyncio.gather(*(nvmf.remove_host(exports.rpc, each.nqn, HOST) for each in made))
            write = ("dd", "if=/dev/urandom", "bs=4k", "count=1", "oflag=direct")
            writers = [asyncio.create_task(run(*write, f"of={device}", timeout_s=300)) for device in devices]
            async with asyncio.timeout(150):
                await asyncio.gather(*(exports.host.disconnect(each.nqn) for each in made))
            assert all(each.states() == [] for each in made)
            async with asyncio.timeout(60):
                await asyncio.gather(*writers, return_exceptions=True)
            await asyncio.gather(*(nvmf.add_host(exports.rpc, each.nqn, HOST) for each in made))
    finally:
        for hog in hogs:
            hog.kill()


async def test_host_let_in_again_goes_on(exports: Exports) -> None:
    export = await exports.make()
    device = await export.connect()
    await nvmf.remove_host(exports.rpc, export.nqn, HOST)
    await until(export.states, lambda states: states == ["connecting"])
    writer = asyncio.create_task(run("dd", "if=/dev/urandom", f"of={device}", "bs=4k", "count=1", "oflag=direct"))
    await nvmf.add_host(exports.rpc, export.nqn, HOST)
    await until(export.states, lambda states: states == ["live"])
    await writer


async def test_inaccessible_holds_io_back_and_optimized_lets_it_go(exports: Exports) -> None:
    export = await exports.make()
    device = await export.connect()
    async with Fio(device, size="48m", options=ENDLESS) as fio:
        await until(fio.written, lambda count: count > MIB // 2)
        await export.set_ana_state(nvmf.AnaState.INACCESSIBLE)
        paused = await until(lambda: _still(export.file), lambda pair: pair[0] == pair[1])
        await asyncio.sleep(2)  # the time for which nothing may happen is what is tested
        assert export.file.stat().st_mtime_ns == paused[1]
        assert fio.running
        assert export.states() == ["live"]
        await export.set_ana_state(nvmf.AnaState.OPTIMIZED)
        await fio.goes_on()
        result = await fio.finish()
    assert result.error == 0
    assert result.longest_s > 1.5


def _still(file: Path) -> tuple[int, int]:
    """Time of the last write, read twice with a pause: in-flight writes may still arrive after the state changed."""
    first = file.stat().st_mtime_ns
    os.sched_yield()
    signal.sigtimedwait([], 0.3)
    return first, file.stat().st_mtime_ns


async def test_frozen_target_is_waited_for(exports: Exports) -> None:
    """Longer than the keep-alive timeout: the kernel gives the connection up and makes a new one."""
    export = await exports.make()
    device = await export.connect()
    async with Fio(device, size="32m", options=ENDLESS) as fio:
        await until(fio.written, lambda count: count > MIB // 2)
        os.kill(exports.target.pid, signal.SIGSTOP)
        try:
            await until(export.states, lambda states: states != ["live"], timeout_s=40)
        finally:
            os.kill(exports.target.pid, signal.SIGCONT)
        await until(export.states, lambda states: states == ["live"])
        await fio.goes_on()
        result = await fio.finish()
    assert result.error == 0
    assert result.longest_s > 3


async def test_killed_target_is_waited_for(exports: Exports) -> None:
    export = await exports.make()
    device = await export.connect()
    async with Fio(device, size="32m", options=ENDLESS) as fio:
        await until(fio.written, lambda count: count > MIB // 2)
        await exports.crash_and_restart()
        await until(export.states, lambda states: states == ["live"])
        await fio.goes_on()
        result = await fio.finish()
    assert result.error == 0
    assert result.longest_s > 0.5
    assert await export.connect() == device
