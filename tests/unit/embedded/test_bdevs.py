"""Disks over files and memory: what is refused, that data go where they belong, limits and counters."""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from agent.embedded.bdev import IoFailure
from agent.embedded.rpc import RpcFault

from .conftest import MIB, Machine

BLOCK = 4096


async def aio(machine: Machine, path: Path | str, **params: Any) -> str:
    created = await machine.call(
        "bdev_aio_create", **{"name": "d", "filename": str(path), "block_size": BLOCK, **params}
    )
    assert isinstance(created, str)
    return created


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
@pytest.mark.parametrize("method", ["bdev_aio_create", "bdev_uring_create"])
async def test_devices_are_refused_with_the_way_out(machine: Machine, method: str, path: str) -> None:
    with pytest.raises(RpcFault, match="use spdk_tgt"):
        await machine.call(method, name="d", filename=path, block_size=BLOCK)
    assert machine.bdevs.all() == []


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"filename": ""}, -2),
        ({"filename": "/nowhere/x"}, -2),
        ({"filename": "/tmp"}, -21),
        ({"block_size": 256}, -22),
        ({"block_size": 1000}, -22),
        ({"block_size": 0}, -22),
        ({"name": ""}, -22),
        ({"name": "m"}, -17),
        ({"uuid": "zz"}, -32603),
    ],
)
async def test_what_cannot_be_a_disk(machine: Machine, params: dict[str, Any], code: int) -> None:
    await machine.call("bdev_malloc_create", name="m", num_blocks=8, block_size=BLOCK)
    with pytest.raises(RpcFault) as refused:
        await aio(machine, machine.disk("a", MIB), **params)
    assert refused.value.code == code
    assert [bdev.name for bdev in machine.bdevs.all()] == ["m"]


async def test_a_file_that_is_no_whole_number_of_blocks(machine: Machine) -> None:
    with pytest.raises(RpcFault) as refused:
        await aio(machine, machine.disk("a", 1000))
    assert refused.value.code == -22


@pytest.mark.parametrize("kind", ["aio", "uring"])
async def test_data_are_in_the_file_and_a_grown_file_is_a_grown_disk(machine: Machine, kind: str) -> None:
    path = machine.disk("a", 2 * MIB)
    await machine.call(f"bdev_{kind}_create", name="d", filename=str(path), block_size=BLOCK)
    bdev = machine.bdev("d")
    await bdev.write(MIB, b"x" * MIB)
    await bdev.flush()
    await bdev.write_zeroes(MIB + BLOCK, BLOCK)
    with path.open("rb") as file:
        assert file.read() == bytes(MIB) + b"x" * BLOCK + bytes(BLOCK) + b"x" * (MIB - 2 * BLOCK)
    machine.disk("a", 3 * MIB)
    assert bdev.size_bytes == 2 * MIB
    await machine.call(f"bdev_{kind}_rescan", name="d")
    assert bdev.size_bytes == 3 * MIB
    await machine.call(f"bdev_{kind}_delete", name="d")
    with pytest.raises(IoFailure):
        await bdev.read(0, BLOCK)


async def test_deleting_a_disk_under_large_writes_does_not_hurt_other_files(machine: Machine) -> None:
    """A descriptor closed too early would be reused by the next file that is opened."""
    path = machine.disk("a", 64 * MIB)
    await aio(machine, path)
    bdev = machine.bdev("d")
    writes = [asyncio.create_task(bdev.write(offset * 8 * MIB, b"x" * 8 * MIB)) for offset in range(8)]
    await asyncio.sleep(0)
    await machine.call("bdev_aio_delete", name="d")
    other = machine.disk("b", 64 * MIB)
    await aio(machine, other, name="e")
    await asyncio.gather(*writes, return_exceptions=True)
    assert await machine.bdev("e").read(0, 64 * MIB) == bytes(64 * MIB)


async def test_a_read_only_disk_takes_no_write(machine: Machine) -> None:
    await aio(machine, machine.disk("a", MIB), readonly=True)
    with pytest.raises(IoFailure) as failure:
        await machine.bdev("d").write(0, bytes(BLOCK))
    assert failure.value.errno == 30
    with pytest.raises(RpcFault):
        await machine.call("bdev_lvol_create_lvstore", bdev_name="d", lvs_name="l", cluster_sz=65536)


async def test_deleting_by_the_method_of_another_kind_is_refused(machine: Machine) -> None:
    await aio(machine, machine.disk("a", MIB))
    for method in ("bdev_malloc_delete", "bdev_uring_delete", "bdev_lvol_delete", "bdev_uring_rescan"):
        with pytest.raises(RpcFault) as refused:
            await machine.call(method, name="d")
        assert refused.value.code == -19


async def test_waiting_for_a_bdev_to_appear(machine: Machine) -> None:
    wanted = asyncio.create_task(machine.call("bdev_get_bdevs", name="m", timeout=5000))
    await asyncio.sleep(0)
    await machine.call("bdev_malloc_create", name="m", num_blocks=8, block_size=BLOCK)
    (info,) = await wanted
    assert info["name"] == "m"
    with pytest.raises(RpcFault) as late:
        await machine.call("bdev_get_bdevs", name="never", timeout=20)
    assert late.value.code == -110


async def limited(machine: Machine, **limits: int) -> None:
    await machine.call("bdev_malloc_create", name="m", num_blocks=16 * MIB // BLOCK, block_size=BLOCK)
    machine.bdev("m").subscribe(lambda bdev, event: None)  # in use: limits of others cannot be changed
    await machine.call("bdev_set_qos_limit", name="m", **limits)


async def timed(work: Any) -> float:
    started = time.monotonic()
    await work
    return time.monotonic() - started


async def test_operations_per_second_are_limited_and_the_limit_can_be_lifted(machine: Machine) -> None:
    await limited(machine, rw_ios_per_sec=1000)
    bdev = machine.bdev("m")

    async def operate(count: int) -> None:
        await asyncio.gather(*(bdev.read(n * BLOCK, BLOCK) for n in range(count)))

    assert 0.2 < await timed(operate(300)) < 2
    await machine.call("bdev_set_qos_limit", name="m", rw_ios_per_sec=0)
    assert await timed(operate(300)) < 0.2


async def test_bytes_per_second_are_limited_by_direction(machine: Machine) -> None:
    await limited(machine, w_mbytes_per_sec=10)
    bdev = machine.bdev("m")

    async def write() -> None:
        for number in range(4):
            await bdev.write(number * MIB, bytes(MIB))

    async def read() -> None:
        for number in range(16):
            await bdev.read(number * MIB, MIB)

    assert await timed(read()) < 0.25
    assert 0.25 < await timed(write()) < 3


async def test_limits_are_rounded_reported_and_kept(machine: Machine) -> None:
    await limited(machine, rw_ios_per_sec=1500, r_mbytes_per_sec=3)
    expected = {"rw_ios_per_sec": 2000, "rw_mbytes_per_sec": 0, "r_mbytes_per_sec": 3, "w_mbytes_per_sec": 0}
    (info,) = await machine.call("bdev_get_bdevs", name="m")
    assert info["assigned_rate_limits"] == expected
    await machine.call("bdev_set_qos_limit", name="m", w_mbytes_per_sec=4)
    (info,) = await machine.call("bdev_get_bdevs", name="m")
    assert info["assigned_rate_limits"] == {**expected, "w_mbytes_per_sec": 4}


async def test_a_limited_bdev_that_nobody_has_open_cannot_be_changed(machine: Machine) -> None:
    """As on SPDK v26.05, see the recorded transcript, scenario "qos"."""
    await machine.call("bdev_malloc_create", name="m", num_blocks=8, block_size=BLOCK)
    await machine.call("bdev_set_qos_limit", name="m", rw_ios_per_sec=1000)
    with pytest.raises(RpcFault, match="Resource temporarily unavailable"):
        await machine.call("bdev_set_qos_limit", name="m", rw_ios_per_sec=2000)


async def test_counters_count(machine: Machine) -> None:
    await machine.call("bdev_malloc_create", name="m", num_blocks=64, block_size=BLOCK)
    bdev = machine.bdev("m")
    await bdev.write(0, bytes(3 * BLOCK))
    for _ in range(2):
        await bdev.read(0, BLOCK)
    await bdev.unmap(0, 4 * BLOCK)
    answer = await machine.call("bdev_get_iostat", names=["m"], reset_mode="all")
    (counters,) = answer["bdevs"]
    assert {key: counters[key] for key in counters if key.startswith(("bytes_", "num_"))} == {
        "bytes_read": 2 * BLOCK,
        "num_read_ops": 2,
        "bytes_written": 3 * BLOCK,
        "num_write_ops": 1,
        "bytes_unmapped": 4 * BLOCK,
        "num_unmap_ops": 1,
        "bytes_copied": 0,
        "num_copy_ops": 0,
    }
    assert counters["min_read_latency_ticks"] <= counters["max_read_latency_ticks"] <= counters["read_latency_ticks"]
    (again,) = (await machine.call("bdev_get_iostat", names=["m"]))["bdevs"]
    assert again["num_read_ops"] == 0


async def test_histograms_count_every_operation_while_enabled(machine: Machine) -> None:
    await machine.call("bdev_malloc_create", name="m", num_blocks=64, block_size=BLOCK)
    bdev = machine.bdev("m")

    async def total() -> int:
        answer = await machine.call("bdev_get_histogram", name="m")
        packed = base64.b64decode(answer["histogram"])
        counts = struct.unpack(f"<{len(packed) // 8}Q", packed)
        assert len(counts) == (answer["max_range"] - answer["min_range"] + 1) << answer["granularity"]
        return sum(counts)

    with pytest.raises(RpcFault):
        await total()
    await machine.call("bdev_enable_histogram", name="m", enable=True)
    for _ in range(5):
        await bdev.read(0, BLOCK)
    assert await total() == 5
    await machine.call("bdev_enable_histogram", name="m", enable=False)
    await bdev.read(0, BLOCK)
    assert await total() == 0


async def test_writes_that_wait_follow_a_limit_that_is_changed(machine: Machine) -> None:
    await machine.call("bdev_malloc_create", name="m", num_blocks=64 * MIB // 4096, block_size=4096)
    bdev = machine.bdev("m")
    end = bdev.subscribe(lambda *_: None)
    await machine.call("bdev_set_qos_limit", name="m", w_mbytes_per_sec=1)
    writes = asyncio.gather(*(bdev.write(number * MIB, bytes([number]) * MIB) for number in range(30)))
    await asyncio.sleep(0)
    await machine.call("bdev_set_qos_limit", name="m", w_mbytes_per_sec=100)
    async with asyncio.timeout(5):
        await writes
    assert await bdev.read(29 * MIB, MIB) == bytes([29]) * MIB
    end()
