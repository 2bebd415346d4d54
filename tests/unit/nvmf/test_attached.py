"""`bdev_nvme_*`: a target's subsystem attached as bdevs by another, and what happens when the connection is lost."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.embedded.bdev import BdevEvent, BdevRegistry, IoFailure
from agent.embedded.nvmf import register
from agent.embedded.rpc import Methods, RpcFault
from agent.nvmf.identify import AnaState
from tests.contract.targets import free_port

from .memory import HOST, MIB, NQN, OTHER, Exported, MemoryBdev, exported, expose
from .waiting import until


class Attaching:
    """A second target: its bdevs and its methods."""

    def __init__(self) -> None:
        self.bdevs = BdevRegistry()
        self.methods = Methods()
        self.nvmf = register(self.methods, self.bdevs)

    async def call(self, method: str, **params: Any) -> Any:
        return await self.methods.call(method, params)

    async def attach(self, target: Exported, **params: Any) -> Any:
        return await self.call(
            "bdev_nvme_attach_controller",
            **{
                "name": "r", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(target.port),
                "subnqn": NQN, "hostnqn": HOST, **params,
            },
        )  # fmt: skip

    async def state(self) -> str:
        (controller,) = await self.call("bdev_nvme_get_controllers", name="r")
        return str(controller["ctrlrs"][0]["state"])

    def bdev(self, name: str = "rn1") -> Any:
        return self.bdevs.get(name)


@pytest.fixture
async def host() -> AsyncIterator[Attaching]:
    attaching = Attaching()
    yield attaching
    await attaching.nvmf.close()


async def test_attach_use_and_detach(host: Attaching) -> None:
    async with exported() as target:
        assert await host.attach(target, hdgst=True, ddgst=True) == ["rn1"]
        bdev = host.bdev()
        assert bdev.uuid == target.bdev.uuid
        assert host.bdevs.get(target.bdev.uuid) is bdev
        data = os.urandom(MIB)
        await bdev.write(0, data)
        assert await bdev.read(0, MIB) == data
        assert bytes(target.bdev.content[:MIB]) == data
        await bdev.write_zeroes(0, 8192)
        await bdev.unmap(8192, 4096)
        await bdev.flush()
        assert target.bdev.content[:12288] == bytes(12288)
        info = bdev.info()
        assert info["product_name"] == "NVMe disk"
        assert info["driver_specific"]["nvme"][0]["ns_data"] == {"id": 1, "ana_state": "optimized", "can_share": True}
        assert info["driver_specific"]["nvme"][0]["vs"] == {"nvme_version": "2.0"}
        assert await host.call("bdev_nvme_detach_controller", name="r") is True
        assert host.bdev() is None
        with pytest.raises(RpcFault) as again:
            await host.call("bdev_nvme_detach_controller", name="r")
        assert again.value.code == -errno.ENODEV
        await until(lambda: not target.subsystem.controllers)


async def test_attach_refusals(host: Attaching) -> None:
    async with exported() as target:

        async def code(**params: Any) -> int:
            with pytest.raises(RpcFault) as fault:
                await host.attach(target, **params)
            return fault.value.code

        assert await code(hostnqn=OTHER) == -errno.EIO
        assert await code(trsvcid=str(free_port())) == -errno.EIO
        assert await code(subnqn=NQN + "x") == -errno.EIO
        assert await code(ctrlr_loss_timeout_sec=4) == -errno.EINVAL
        assert await code(ctrlr_loss_timeout_sec=4, reconnect_delay_sec=5) == -errno.EINVAL
        assert await code(ctrlr_loss_timeout_sec=-2) == -errno.EINVAL
        assert await code(reconnect_delay_sec=1) == -errno.EINVAL
        assert await code(trtype="IPX") == -errno.EINVAL
        assert await code(unknown=1) == -32603
        assert await host.call("bdev_nvme_get_controllers") == []
        await host.attach(target)
        assert await code() == -errno.EALREADY
        assert await code(subnqn=NQN + "x", traddr="127.0.0.2") == -errno.EINVAL
        with pytest.raises(RpcFault) as absent:
            await host.call("bdev_nvme_get_controllers", name="none")
        assert (absent.value.code, absent.value.message) == (-errno.EINVAL, "Controller none does not exist")


async def test_description_of_the_controller(host: Attaching) -> None:
    async with exported() as target:
        await host.attach(target)
        trid = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(target.port), "subnqn": NQN}
        described = {
            "state": "enabled",
            "trid": trid,
            "cntlid": 1,
            "host": {"nqn": HOST, "addr": "", "svcid": "", "no_shn_notification": False},
        }
        assert await host.call("bdev_nvme_get_controllers") == [{"name": "r", "ctrlrs": [described]}]
        health = await host.call("bdev_nvme_get_controller_health_info", name="r")
        assert health["serial_number"] == "QV1"
        assert health["media_errors"] == 0


async def test_namespaces_come_grow_and_go(host: Attaching) -> None:
    async with exported() as target:
        registry = BdevRegistry()
        registry.add(target.bdev)
        await host.attach(target)
        bdev = host.bdev()
        seen: list[BdevEvent] = []
        bdev.subscribe(lambda _bdev, event: seen.append(event))
        target.bdev.resize(2048)
        registry.resize(target.bdev, 2048)
        await until(lambda: bdev.num_blocks == 2048)
        assert seen == [BdevEvent.RESIZE]
        expose(target.subsystem, MemoryBdev("second"), 2)
        await until(lambda: host.bdev("rn2"))
        target.subsystem.remove_namespace(1)
        await until(lambda: host.bdev("rn1") is None)
        assert seen == [BdevEvent.RESIZE, BdevEvent.REMOVE]
        assert await host.state() == "enabled"


async def test_a_cut_host_loses_the_controller_after_its_timeout(host: Attaching) -> None:
    async with exported() as target:
        await host.attach(target, ctrlr_loss_timeout_sec=2, reconnect_delay_sec=1, fast_io_fail_timeout_sec=1)
        bdev = host.bdev()
        seen: list[BdevEvent] = []
        bdev.subscribe(lambda _bdev, event: seen.append(event))
        begun = time.monotonic()
        target.subsystem.remove_host(HOST)
        states: set[str] = set()

        async def record() -> None:
            while host.bdev() is not None:
                states.add(await host.state())
                await asyncio.sleep(0.01)

        with pytest.raises(IoFailure):
            await bdev.write(0, bytes(4096))
        assert 0.8 < time.monotonic() - begun < 1.9  # fast_io_fail_timeout_sec
        await record()
        assert 1.8 < time.monotonic() - begun < 3.5  # ctrlr_loss_timeout_sec
        assert "reconnect_is_delayed" in states
        assert seen == [BdevEvent.REMOVE]
        assert await host.call("bdev_nvme_get_controllers") == []


async def test_without_a_loss_timeout_it_fails_at_once_and_stays(host: Attaching) -> None:
    async with exported() as target:
        await host.attach(target)
        target.subsystem.remove_host(HOST)
        with pytest.raises(IoFailure):
            await host.bdev().read(0, 4096)
        assert await host.state() == "failed"
        assert host.bdev() is not None


async def test_io_waits_for_a_target_that_comes_back(host: Attaching) -> None:
    bdev = MemoryBdev()
    async with exported(bdev=bdev) as target:
        await host.attach(target, ctrlr_loss_timeout_sec=-1, reconnect_delay_sec=1)
        address = target.address
        target.subsystem.remove_listener(address)
        await target.target.ports.release(address)
        write = asyncio.create_task(host.bdev().write(4096, b"late" * 1024))
        await asyncio.sleep(0.05)
        assert not write.done()
        await target.target.ports.acquire(address)
        target.subsystem.add_listener(address, AnaState.OPTIMIZED)
        await asyncio.wait_for(write, 5)
        assert bdev.content[4096:8192] == b"late" * 1024
        assert await host.state() == "enabled"


async def test_io_waits_while_the_path_is_inaccessible(host: Attaching) -> None:
    async with exported() as target:
        await host.attach(target)
        target.listener_state(AnaState.INACCESSIBLE)
        write = asyncio.create_task(host.bdev().write(0, b"held" * 1024))
        await until(lambda: host.bdev().info()["driver_specific"]["nvme"][0]["ns_data"]["ana_state"] == "inaccessible")
        assert not write.done()
        assert target.bdev.content[:4096] == bytes(4096)
        target.listener_state(AnaState.OPTIMIZED)
        await asyncio.wait_for(write, 5)
        assert target.bdev.content[:4096] == b"held" * 1024


async def test_detaching_fails_io_that_waits(host: Attaching) -> None:
    async with exported() as target:
        await host.attach(target, ctrlr_loss_timeout_sec=-1, reconnect_delay_sec=1)
        target.subsystem.remove_host(HOST)
        read = asyncio.create_task(host.bdev().read(0, 4096))
        await asyncio.sleep(0.02)
        await host.call("bdev_nvme_detach_controller", name="r")
        with pytest.raises(IoFailure):
            await read


async def test_options_set_the_defaults(host: Attaching) -> None:
    async with exported() as target:
        with pytest.raises(RpcFault) as wrong:
            await host.call("bdev_nvme_set_options", ctrlr_loss_timeout_sec=1)
        assert wrong.value.code == -errno.EINVAL
        assert await host.call("bdev_nvme_set_options", ctrlr_loss_timeout_sec=-1, reconnect_delay_sec=1) is True
        await host.attach(target)
        target.subsystem.remove_host(HOST)
        await until(lambda: not target.subsystem.controllers)
        for _ in range(200):
            if await host.state() == "reconnect_is_delayed":
                break
            await asyncio.sleep(0.01)
        assert await host.state() == "reconnect_is_delayed"
        with pytest.raises(RpcFault) as late:
            await host.call("bdev_nvme_set_options")
        assert late.value.code == -errno.EPERM


async def _connecting(target: Exported) -> None:
    """Return at the very moment in which the target has taken the admin queue."""
    async with asyncio.timeout(5):
        while not target.subsystem.controllers:  # noqa: ASYNC110 - each turn of the loop counts
            await asyncio.sleep(0)


async def test_detaching_what_is_still_being_attached(host: Attaching) -> None:
    async with exported() as target:
        attaching = asyncio.create_task(host.attach(target))
        await _connecting(target)
        assert await host.call("bdev_nvme_detach_controller", name="r") is True
        with pytest.raises(RpcFault):
            await attaching
        assert host.bdev() is None
        await until(lambda: not target.subsystem.controllers)
        assert await host.attach(target) == ["rn1"]


async def test_detaching_at_any_moment_of_a_reconnection_leaves_no_connection(host: Attaching) -> None:
    async with exported() as target:
        for steps in range(0, 150):
            await host.attach(target, ctrlr_loss_timeout_sec=-1, reconnect_delay_sec=1)
            (cut,) = target.subsystem.controllers.values()
            cut.disconnect("cut by the test")
            await _connecting(target)
            for _ in range(steps):
                await asyncio.sleep(0)
            await host.call("bdev_nvme_detach_controller", name="r")
            await until(lambda: not target.subsystem.controllers)


async def test_io_that_waited_fails_when_the_namespace_is_gone_afterwards(host: Attaching) -> None:
    async with exported() as target:
        await host.attach(target, ctrlr_loss_timeout_sec=-1, reconnect_delay_sec=1)
        address = target.address
        target.subsystem.remove_listener(address)
        await target.target.ports.release(address)
        write = asyncio.create_task(host.bdev().write(0, bytes(4096)))
        target.subsystem.remove_namespace(1)
        await target.target.ports.acquire(address)
        target.subsystem.add_listener(address, AnaState.OPTIMIZED)
        with pytest.raises(IoFailure):
            await asyncio.wait_for(write, 5)
