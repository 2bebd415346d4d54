from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError

from agent import errors
from agent.csi.client import CallFailed, CsiClient, capability
from agent.csi.pb import csi_pb2 as csi
from agent.csi.server import CsiServer, build_server
from agent.model import TargetState

from .conftest import THIS, Driver
from .fake_snapshots import MemoryGroups, MemorySnapshots
from .fakes import MemoryNode, MemoryVolumes

GIB = 1 << 30


def new_server(endpoint: str) -> CsiServer:
    volumes = MemoryVolumes()
    snapshots = MemorySnapshots(volumes)
    return build_server(volumes, volumes, snapshots, MemoryGroups(snapshots), MemoryNode(), THIS, endpoint)


# --- Identity ----------------------------------------------------------------------------------------------------


async def test_identity(driver: Driver) -> None:
    info = await driver.client.plugin_info()
    assert info.name == "csi.quarry.storage"
    assert re.fullmatch(r"[a-zA-Z][A-Za-z0-9-._]{0,61}[a-zA-Z]", info.name)
    answer = await driver.client.plugin_capabilities()
    kinds = [each.service.type for each in answer.capabilities if each.HasField("service")]
    service = csi.PluginCapability.Service
    expected = [service.CONTROLLER_SERVICE, service.VOLUME_ACCESSIBILITY_CONSTRAINTS, service.GROUP_CONTROLLER_SERVICE]
    assert kinds == expected
    expansion = [each.volume_expansion.type for each in answer.capabilities if each.HasField("volume_expansion")]
    assert expansion == [csi.PluginCapability.VolumeExpansion.ONLINE]


@pytest.mark.parametrize("state", list(TargetState))
async def test_probe_tells_the_truth_about_the_target(driver: Driver, state: TargetState) -> None:
    driver.volumes.state = state
    response = await driver.client.call("Identity/Probe", csi.ProbeRequest())
    assert response.HasField("ready")
    assert response.ready.value is (state is TargetState.READY)


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (errors.InvalidArgument("size", "wrong"), StatusCode.INVALID_ARGUMENT),
        (errors.NotFound("disk", "d0"), StatusCode.NOT_FOUND),
        (errors.AlreadyExists("volume", "x"), StatusCode.ALREADY_EXISTS),
        (errors.FailedPrecondition("not now"), StatusCode.FAILED_PRECONDITION),
        (errors.OutOfRange("too much"), StatusCode.OUT_OF_RANGE),
        (errors.ResourceExhausted("full"), StatusCode.RESOURCE_EXHAUSTED),
        (errors.Busy("wait"), StatusCode.ABORTED),
        (errors.Conflict("volume", "x", 3), StatusCode.ABORTED),
        (errors.Unavailable("away"), StatusCode.UNAVAILABLE),
        (errors.TransportClosed("closed"), StatusCode.UNAVAILABLE),
        (errors.DeadlineExceeded("late"), StatusCode.DEADLINE_EXCEEDED),
        (errors.RpcError("bdev_lvol_create", -28, "No space"), StatusCode.INTERNAL),
        (errors.CommandFailed(["mkfs"], 1, "no"), StatusCode.INTERNAL),
        (errors.QuarryError("something"), StatusCode.INTERNAL),
    ],
)
async def test_every_domain_error_has_its_code_and_sentence(
    driver: Driver, failure: errors.QuarryError, code: StatusCode
) -> None:
    driver.volumes.failure = failure
    with pytest.raises(CallFailed) as caught:
        await driver.client.create_volume("a", GIB)
    assert (caught.value.code, caught.value.details) == (code, str(failure))


def test_the_table_of_codes_has_every_error_of_the_domain() -> None:
    from agent.csi import status

    def subclasses(kind: type[errors.QuarryError]) -> set[type[errors.QuarryError]]:
        return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))

    ours = {kind for kind in subclasses(errors.QuarryError) if kind.__module__ == errors.__name__}
    covered = {kind for kind in ours if any(base in status._CODES for base in kind.__mro__)}
    assert ours - covered == {errors.QuarryError}


async def test_a_defect_of_ours_is_internal_and_only_the_log_shows_it(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.volumes.failure = KeyError("sesame")
    with pytest.raises(CallFailed) as caught:
        await driver.client.create_volume("a", GIB)
    assert caught.value.code is StatusCode.INTERNAL
    assert "sesame" not in caught.value.details and "Traceback" not in caught.value.details
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.exc_info and "sesame" in str(record.exc_info[1])
    driver.volumes.failure = None
    assert await driver.client.create_volume("a", GIB)


async def test_long_messages_of_any_alphabet_reach_the_caller(driver: Driver) -> None:
    driver.volumes.failure = errors.CommandFailed(["mkfs"], 1, "☃" * 5000)
    with pytest.raises(CallFailed) as caught:
        await driver.client.create_volume("a", GIB)
    assert caught.value.code is StatusCode.INTERNAL
    assert caught.value.details.startswith("mkfs failed")


async def test_secrets_are_never_logged(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = {"password": "hunter2"}
    request = csi.CreateVolumeRequest(name="a", volume_capabilities=[capability()], secrets=secrets)
    await driver.client.call("Controller/CreateVolume", request)
    driver.volumes.failure = ValueError("broken")
    with pytest.raises(CallFailed):
        await driver.client.call("Controller/CreateVolume", request)
    stage = csi.NodeStageVolumeRequest(
        volume_id="v", staging_target_path="/s", volume_capability=capability(), secrets=secrets
    )
    with pytest.raises(CallFailed):
        await driver.client.call("Node/NodeStageVolume", stage)
    assert "CreateVolume OK" in caplog.text
    assert "hunter2" not in caplog.text


async def test_garbage_instead_of_a_request(driver: Driver) -> None:
    raw = driver.client._channel.unary_unary("/csi.v1.Controller/CreateVolume")
    with pytest.raises(AioRpcError) as caught:
        await raw(b"\xff\xff\xff")
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
    assert await driver.client.create_volume("a", GIB)


# --- deadlines, cancellation, shutdown ---------------------------------------------------------------------------


async def eventually(condition: Any, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is in the server, not in a task of ours
            await asyncio.sleep(0.005)


async def test_deadline_reaches_the_domain_and_the_call_can_be_repeated(driver: Driver) -> None:
    driver.volumes.gate.clear()
    request = csi.CreateVolumeRequest(name="a", volume_capabilities=[capability()])
    with pytest.raises(CallFailed) as caught:
        await driver.client.call("Controller/CreateVolume", request, timeout_s=0.2)
    assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: driver.volumes.cancelled == 1)
    driver.volumes.gate.set()
    assert await driver.client.create_volume("a", GIB)


async def test_cancellation_reaches_the_domain(driver: Driver) -> None:
    driver.volumes.gate.clear()
    call = asyncio.create_task(driver.client.create_volume("a", GIB))
    await driver.volumes.entered.wait()
    call.cancel()
    await eventually(lambda: driver.volumes.cancelled == 1)
    driver.volumes.gate.set()
    assert not (await driver.client.list_volumes()).entries


async def test_stop_lets_calls_in_flight_end(short_dir: Path) -> None:
    endpoint = f"unix://{short_dir}/s"
    volumes = MemoryVolumes()
    snapshots = MemorySnapshots(volumes)
    server = build_server(volumes, volumes, snapshots, MemoryGroups(snapshots), MemoryNode(), THIS, endpoint)
    await server.start()
    async with CsiClient(endpoint) as client:
        volumes.gate.clear()
        call = asyncio.create_task(client.create_volume("a", GIB))
        await volumes.entered.wait()
        stopping = asyncio.create_task(server.stop(5))
        await asyncio.sleep(0)
        volumes.gate.set()
        assert await call
        await stopping
    assert not (short_dir / "s").exists()
    await server.stop()


# --- the socket --------------------------------------------------------------------------------------------------


async def test_the_socket_is_private_and_goes_with_the_server(short_dir: Path) -> None:
    path = short_dir / "new" / "dir" / "csi.sock"
    before = os.umask(0)
    try:
        server = new_server(f"unix://{path}")
        await server.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    await server.stop(0)
    assert not path.exists()


async def test_a_stale_socket_is_replaced(short_dir: Path) -> None:
    path = short_dir / "csi.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = new_server(f"unix://{path}")
    await server.start()
    async with CsiClient(f"unix://{path}") as client:
        assert (await client.plugin_info()).name
    await server.stop(0)


async def test_a_served_socket_is_left_alone(driver: Driver) -> None:
    second = new_server(driver.endpoint)
    with pytest.raises(errors.FailedPrecondition, match="already serves"):
        await second.start()
    await second.stop()
    assert (await driver.client.plugin_info()).name
    async with CsiClient(driver.endpoint) as another:
        assert (await another.plugin_info()).name


async def test_other_files_are_left_alone(short_dir: Path) -> None:
    path = short_dir / "csi.sock"
    path.write_text("precious")
    with pytest.raises(errors.FailedPrecondition, match="not a socket"):
        await new_server(f"unix://{path}").start()
    assert path.read_text() == "precious"
    (short_dir / "file").touch()
    with pytest.raises(errors.FailedPrecondition, match="cannot listen at"):
        await new_server(f"unix://{short_dir}/file/csi.sock").start()


@pytest.mark.parametrize(
    "endpoint",
    [
        "", "/run/csi.sock", "unix:csi.sock", "unix://csi.sock", "unix:/csi.sock", "unix:///", "unix:///a/",
        "tcp://127.0.0.1:1", "127.0.0.1:10000", "dns:///x", "unix:///" + "x" * 200, "unix:///a\0b",
    ],
)  # fmt: skip
def test_other_endpoints_are_refused(endpoint: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        new_server(endpoint)
    assert caught.value.field == "csi_endpoint"


async def test_no_server_is_a_clear_error(short_dir: Path) -> None:
    async with CsiClient(f"unix://{short_dir}/none") as client:
        with pytest.raises(CallFailed) as caught:
            await client.plugin_info()
        assert caught.value.code is StatusCode.UNAVAILABLE
        with pytest.raises(CallFailed) as waited:
            await client.wait_ready(0.2)
        assert waited.value.code is StatusCode.DEADLINE_EXCEEDED
