"""Calls that cross: the same ones at once, conflicting ones in any order, callers that leave, targets that freeze."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import pytest

from agent.csi.client import CallFailed, CsiClient, capability
from agent.csi.pb import csi_pb2 as csi
from tests.contract.waiting import until

from .machine import NODE, Machine, Patient, holdings

MIB = 1 << 20
SEED = int(os.environ.get("QUARRY_SEED", random.SystemRandom().randrange(1 << 30)))
FINAL = {
    grpc.StatusCode.OK,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ALREADY_EXISTS,
}
ASK_AGAIN = {grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED}
PARAMETERS = {"tier": "ssd"}


@asynccontextmanager
async def serving(machine: Machine, config: str = "") -> AsyncIterator[Patient]:
    machine.start_agent(config)
    patient = Patient(machine.endpoint)
    try:
        await patient.wait_ready()
        yield patient
    finally:
        await patient.close()


@contextmanager
def frozen(machine: Machine) -> Iterator[None]:
    """The target does not run: it answers nothing, and everything it was asked when it goes on."""
    os.kill(machine.target.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(machine.target.pid, signal.SIGCONT)


async def code(call: Awaitable[object]) -> grpc.StatusCode:
    try:
        await call
    except CallFailed as failure:
        return failure.code
    return grpc.StatusCode.OK


def creation(name: str) -> csi.CreateVolumeRequest:
    return csi.CreateVolumeRequest(
        name=name,
        capacity_range=csi.CapacityRange(required_bytes=16 * MIB),
        volume_capabilities=[capability()],
        parameters=PARAMETERS,
    )


async def brief(client: CsiClient, method: str, request: Any, timeout_s: float = 0.05) -> tuple[grpc.StatusCode, float]:
    """A call whose caller leaves after `timeout_s`: the answer and the seconds it took."""
    started = time.monotonic()
    return await code(client.call(f"Controller/{method}", request, timeout_s)), time.monotonic() - started


async def test_the_same_call_many_times_at_once(machine: Machine) -> None:
    async with serving(machine) as patient:
        client = patient.client

        def many(call: Callable[[], Coroutine[Any, Any, Any]]) -> Awaitable[list[Any]]:
            return asyncio.gather(*(call() for _ in range(12)))

        (volume,) = set(await many(lambda: client.create_volume("v", 16 * MIB, PARAMETERS)))
        contexts = await many(lambda: client.publish(volume, NODE))
        assert all(each == contexts[0] for each in contexts)
        assert {each.capacity_bytes for each in await many(lambda: client.expand(volume, 32 * MIB))} == {32 * MIB}
        found = await holdings(machine.target.socket_path)
        assert (found.lvols, {name: len(hosts) for name, hosts in found.exports.items()}) == ([volume], {volume: 1})
        await many(lambda: client.unpublish(volume, NODE))
        await many(lambda: client.delete_volume(volume))
        found = await holdings(machine.target.socket_path)
        assert (found.lvols, found.exports) == ([], {})


async def test_conflicting_calls_at_once(machine: Machine) -> None:
    """Of two that exclude each other one is carried out, whatever the order, and no third state is left."""
    async with serving(machine) as patient:
        client = patient.client
        for attempt in range(5):
            name = f"v{attempt}"
            sizes = [16 * MIB, 32 * MIB]
            codes = await asyncio.gather(*(code(client.create_volume(name, size, PARAMETERS)) for size in sizes))
            assert sorted(codes, key=str) == [grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.OK]
            ((volume, size),) = [
                (each.volume.volume_id, each.volume.capacity_bytes) for each in (await client.list_volumes()).entries
            ]
            assert size == sizes[codes.index(grpc.StatusCode.OK)]
            how = await asyncio.gather(*(code(client.publish(volume, NODE, readonly=each)) for each in (True, False)))
            assert sorted(how, key=str) == [grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.OK]
            await client.unpublish(volume, NODE)
            published, deleted = await asyncio.gather(
                code(client.publish(volume, NODE)), code(client.delete_volume(volume))
            )
            if published is grpc.StatusCode.OK:
                assert deleted is grpc.StatusCode.FAILED_PRECONDITION
                await client.unpublish(volume, NODE)
                await client.delete_volume(volume)
            else:
                assert (published, deleted) == (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OK)
            found = await holdings(machine.target.socket_path)
            assert (found.lvols, found.exports) == ([], {})


async def storm(machine: Machine, rng: random.Random, calls: int) -> None:
    """One client: any call on any of three volumes, now and then one that is given up."""
    async with CsiClient(machine.endpoint, timeout_s=30) as client:
        ids = {name: await client.create_volume(name, 16 * MIB, PARAMETERS) for name in ("a",)}
        for _ in range(calls):
            name = rng.choice("abc")
            volume = ids.get(name, "vol-" + "0" * 32)
            work: list[Callable[[], Coroutine[Any, Any, Any]]] = [
                lambda name=name: client.create_volume(name, 16 * MIB, PARAMETERS),  # type: ignore[misc]
                lambda volume=volume: client.publish(volume, NODE),  # type: ignore[misc]
                lambda volume=volume: client.unpublish(volume, NODE),  # type: ignore[misc]
                lambda volume=volume: client.expand(volume, rng.choice([16, 24, 32]) * MIB),  # type: ignore[misc]
                lambda volume=volume: client.delete_volume(volume),  # type: ignore[misc]
                lambda volume=volume: client.get_volume(volume),  # type: ignore[misc]
            ]
            task = asyncio.create_task(rng.choice(work)())
            if rng.random() < 0.3:
                await asyncio.wait({task}, timeout=rng.random() * 0.02)
                task.cancel()
            try:
                result = await task
            except asyncio.CancelledError:
                continue
            except CallFailed as failure:
                assert failure.code in FINAL | ASK_AGAIN, failure
                continue
            if isinstance(result, str):
                ids[name] = result


async def test_any_calls_in_any_order(machine: Machine) -> None:
    print(f"seed {SEED}")
    async with serving(machine) as patient:
        before = await patient.call("capacity", PARAMETERS)
        await asyncio.gather(*(storm(machine, random.Random(SEED + each), 60) for each in range(6)))

        async def settled() -> bool:
            """Operations whose caller has gone are over: the target has what is listed, and nothing else."""
            listed = {
                each.volume.volume_id: len(each.status.published_node_ids)
                for each in (await patient.call("list_volumes")).entries
            }
            found = await holdings(machine.target.socket_path)
            exports = {volume: len(hosts) for volume, hosts in found.exports.items()}
            return found.lvols == sorted(listed) and exports == listed

        await until(settled, bool)
        for each in (await patient.call("list_volumes")).entries:
            assert not each.status.volume_condition.abnormal
            await patient.call("unpublish", each.volume.volume_id)
            await patient.call("delete_volume", each.volume.volume_id)
        found = await holdings(machine.target.socket_path)
        assert (found.lvols, found.exports) == ([], {})
        assert await patient.call("capacity", PARAMETERS) == before
        assert "Traceback" not in machine.agent_log()


async def test_callers_that_leave_while_the_target_is_frozen(machine: Machine) -> None:
    """They are answered in time; what had begun is carried out, what had not is not."""
    async with serving(machine) as patient:
        client = patient.client
        kept = await patient.call("create_volume", "kept", 16 * MIB, PARAMETERS)
        with frozen(machine):
            status, seconds = await brief(client, "CreateVolume", creation("begun"))
            assert (status, seconds < 1) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
            begun = next(
                each.volume.volume_id for each in (await client.list_volumes()).entries if each.volume.volume_id != kept
            )
            queued: list[tuple[str, Any]] = [
                ("CreateVolume", creation("begun")),
                ("DeleteVolume", csi.DeleteVolumeRequest(volume_id=begun)),
            ]
            for method, request in queued:
                status, seconds = await brief(client, method, request)
                assert (status in ASK_AGAIN, seconds < 1) == (True, True)
            status, seconds = await brief(client, "DeleteVolume", csi.DeleteVolumeRequest(volume_id=begun), 1.0)
            assert (status, seconds < 0.99) == (grpc.StatusCode.ABORTED, True)
            for call in (client.probe(), client.get_volume(kept), client.list_volumes(), client.capacity(PARAMETERS)):
                await asyncio.wait_for(call, 1)
            deletion = asyncio.create_task(client.delete_volume(begun))
            await asyncio.wait({deletion}, timeout=0.2)  # long enough to be waiting for its turn
            deletion.cancel()

        async def lvols() -> list[str]:
            return (await holdings(machine.target.socket_path)).lvols

        await until(lvols, lambda found: found == sorted([kept, begun]))
        await patient.call("publish", begun, NODE)  # it would come after a deletion that was still waiting
        assert await patient.call("create_volume", "begun", 16 * MIB, PARAMETERS) == begun
        assert await lvols() == sorted([kept, begun])


async def test_a_publication_begun_for_a_caller_who_left(machine: Machine) -> None:
    async with serving(machine) as patient:
        volume = await patient.call("create_volume", "v", 16 * MIB, PARAMETERS)
        request = csi.ControllerPublishVolumeRequest(volume_id=volume, node_id=NODE, volume_capability=capability())
        with frozen(machine):
            status, _ = await brief(patient.client, "ControllerPublishVolume", request)
            assert status is grpc.StatusCode.DEADLINE_EXCEEDED
            assert list((await patient.client.get_volume(volume)).status.published_node_ids) == [NODE]

        async def hosts() -> int:
            return len((await holdings(machine.target.socket_path)).exports[volume])

        await until(hosts, lambda count: count == 1)
        with pytest.raises(CallFailed) as failure:
            await patient.call("delete_volume", volume)
        assert failure.value.code is grpc.StatusCode.FAILED_PRECONDITION
        await patient.call("unpublish", volume, NODE)
        assert await hosts() == 0
        await patient.call("delete_volume", volume)
