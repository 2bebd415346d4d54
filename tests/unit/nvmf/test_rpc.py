"""The `nvmf_*` methods: the recorded answers of a real target, and what the recording does not hold."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.embedded.bdev import BdevRegistry, ClaimType
from agent.embedded.nvmf import register
from agent.embedded.nvmf.nqn import is_valid
from agent.embedded.rpc import Methods, RpcFault
from agent.errors import QuarryError
from agent.nvmf import initiator
from tests.contract.targets import free_port

from .memory import HOST, NQN, MemoryBdev

TRANSCRIPT = Path("/work/shared/spdk/transcript.jsonl")
RECORDED_LVOL = "a34cdacd-9f49-4292-8b2c-862211b0c98a"


class Rpc:
    def __init__(self, bind_address: str | None = None) -> None:
        self.bdevs = BdevRegistry()
        self.methods = Methods()
        self.nvmf = register(self.methods, self.bdevs, bind_address)

    async def call(self, method: str, **params: Any) -> Any:
        return await self.methods.call(method, params)

    async def fault(self, method: str, **params: Any) -> tuple[int, str]:
        with pytest.raises(RpcFault) as fault:
            await self.methods.call(method, params)
        return fault.value.code, fault.value.message

    async def subsystem(self, nqn: str = NQN, **params: Any) -> None:
        await self.call("nvmf_create_subsystem", nqn=nqn, **params)


@pytest.fixture
async def rpc() -> AsyncIterator[Rpc]:
    made = Rpc()
    yield made
    await made.nvmf.close()


def _records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TRANSCRIPT.read_text().splitlines()]


def _listen(port: int, address: str = "127.0.0.1", **more: str) -> dict[str, Any]:
    return {"trtype": "TCP", "adrfam": "IPv4", "traddr": address, "trsvcid": str(port), **more}


@pytest.mark.skipif(not TRANSCRIPT.exists(), reason=f"{TRANSCRIPT} is absent")
async def test_the_recorded_calls_get_the_recorded_answers(rpc: Rpc) -> None:
    lvol = MemoryBdev(RECORDED_LVOL)
    lvol.uuid, lvol.aliases = RECORDED_LVOL, ["pool-d0/v1"]
    rpc.bdevs.add(lvol)
    compared = 0
    for record in _records():
        if record["method"] == "bdev_lvol_delete" and record["scenario"] == "delete-in-use":
            rpc.bdevs.remove("pool-d0/v1")
        if record["scenario"] not in ("nvmf", "delete-in-use") or not record["method"].startswith("nvmf_"):
            continue
        try:
            answer = {"result": await rpc.methods.call(record["method"], record["params"])}
        except RpcFault as fault:
            answer = {"error": {"code": fault.code, "message": fault.message}}
        expected = {key: record[key] for key in ("result", "error") if key in record}
        if record["method"] == "nvmf_get_stats":
            answer["result"]["tick_rate"] = expected["result"]["tick_rate"]
        assert json.loads(json.dumps(answer)) == expected, record
        compared += 1
    assert compared > 30


async def test_all_subsystems_of_a_port_share_its_socket(rpc: Rpc) -> None:
    await rpc.call("nvmf_create_transport", trtype="tcp")
    port = free_port()
    for number in range(3):
        await rpc.subsystem(f"{NQN}{number}", allow_any_host=True)
        await rpc.call("nvmf_subsystem_add_listener", nqn=f"{NQN}{number}", listen_address=_listen(port))
    with socket.socket() as taken, pytest.raises(OSError, match="in use"):
        taken.bind(("127.0.0.1", port))
    for number in range(3):
        controller = await initiator.connect("127.0.0.1", port, f"{NQN}{number}", HOST)
        await controller.close()
    await rpc.call("nvmf_subsystem_remove_listener", nqn=f"{NQN}0", listen_address=_listen(port))
    await rpc.call("nvmf_delete_subsystem", nqn=f"{NQN}1")
    await (await initiator.connect("127.0.0.1", port, f"{NQN}2", HOST)).close()
    await rpc.call("nvmf_delete_subsystem", nqn=f"{NQN}2")
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


async def test_a_port_that_somebody_else_has_cannot_be_used(rpc: Rpc) -> None:
    await rpc.call("nvmf_create_transport", trtype="TCP")
    await rpc.subsystem()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = _listen(other.getsockname()[1])
        assert (await rpc.fault("nvmf_subsystem_add_listener", nqn=NQN, listen_address=address))[0] == -32602
    assert await rpc.call("nvmf_subsystem_get_listeners", nqn=NQN) == []


async def test_behind_a_listener_for_any_address_nobody_is_let_in(rpc: Rpc) -> None:
    """The real target compares the address that a host came to with that of the listener."""
    await rpc.call("nvmf_create_transport", trtype="TCP")
    await rpc.subsystem(allow_any_host=True)
    port = free_port()
    await rpc.call("nvmf_subsystem_add_listener", nqn=NQN, listen_address=_listen(port, "0.0.0.0"))
    with pytest.raises(QuarryError):
        await initiator.connect("127.0.0.1", port, NQN, HOST)
    await rpc.call("nvmf_subsystem_remove_listener", nqn=NQN, listen_address=_listen(port, "0.0.0.0"))
    await rpc.call("nvmf_subsystem_add_listener", nqn=NQN, listen_address=_listen(port))
    await (await initiator.connect("127.0.0.1", port, NQN, HOST)).close()


async def test_listening_can_be_limited_to_one_address() -> None:
    limited = Rpc("127.0.0.1")
    await limited.call("nvmf_create_transport", trtype="TCP")
    await limited.subsystem()
    for address in ("127.0.0.2", "0.0.0.0"):
        listen = _listen(free_port(), address)
        assert (await limited.fault("nvmf_subsystem_add_listener", nqn=NQN, listen_address=listen))[0] == -32602
    assert await limited.call("nvmf_subsystem_add_listener", nqn=NQN, listen_address=_listen(free_port())) is True
    await limited.nvmf.close()


@pytest.mark.parametrize(
    "address",
    [
        {"trsvcid": "0"}, {"trsvcid": "65536"}, {"trsvcid": "http"}, {"trsvcid": ""}, {"traddr": "localhost"},
        {"traddr": "::1"}, {"adrfam": "IPv9"}, {"trtype": "carrier pigeon"}, {"traddr": "1" * 300},
    ],
)  # fmt: skip
async def test_addresses_that_cannot_be(rpc: Rpc, address: dict[str, str]) -> None:
    await rpc.call("nvmf_create_transport", trtype="TCP")
    await rpc.subsystem()
    listen = {**_listen(free_port()), **address}
    assert await rpc.fault("nvmf_subsystem_add_listener", nqn=NQN, listen_address=listen) == (
        -32602,
        "Invalid parameters",
    )


async def test_no_listener_without_a_transport(rpc: Rpc) -> None:
    await rpc.subsystem()
    listen = _listen(free_port())
    assert (await rpc.fault("nvmf_subsystem_add_listener", nqn=NQN, listen_address=listen))[0] == -32602


async def test_ana_states_need_ana_reporting(rpc: Rpc) -> None:
    await rpc.call("nvmf_create_transport", trtype="TCP")
    await rpc.subsystem()
    listen = _listen(free_port())
    await rpc.call("nvmf_subsystem_add_listener", nqn=NQN, listen_address=listen)
    wanted = {"nqn": NQN, "listen_address": listen, "ana_state": "inaccessible"}
    assert await rpc.fault("nvmf_subsystem_listener_set_ana_state", **wanted) == (
        -32603,
        "error setting ANA state: -22",
    )
    assert (await rpc.fault("nvmf_subsystem_listener_set_ana_state", **{**wanted, "nqn": "x"}))[0] == -32602
    assert (await rpc.fault("nvmf_subsystem_listener_set_ana_state", **{**wanted, "ana_state": "off"}))[0] == -32602
    assert await rpc.call("nvmf_subsystem_get_listeners", nqn=NQN) == [{"address": listen}]


async def test_a_claimed_bdev_cannot_be_exported_and_an_exported_one_not_claimed(rpc: Rpc) -> None:
    await rpc.subsystem(max_namespaces=4)
    free, claimed = MemoryBdev("free"), MemoryBdev("claimed")
    rpc.bdevs.add(free)
    rpc.bdevs.add(claimed)
    claimed.claim("raid", ClaimType.EXCLUSIVE_WRITE)
    for bdev in ("claimed", "absent"):
        assert (await rpc.fault("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": bdev}))[0] == -32602
    assert await rpc.call("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "free"}) == 1
    assert (await rpc.fault("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "free"}))[0] == -32602
    assert free.claimed_by == "NVMe-oF Target"
    assert await rpc.call("nvmf_subsystem_remove_ns", nqn=NQN, nsid=1) is True
    assert free.claimed_by is None
    assert (await rpc.fault("nvmf_subsystem_remove_ns", nqn=NQN, nsid=1))[0] == -32602


async def test_namespace_identifiers(rpc: Rpc) -> None:
    await rpc.subsystem(max_namespaces=8)
    bdev = MemoryBdev("one")
    rpc.bdevs.add(bdev)
    rpc.bdevs.add(MemoryBdev("two"))
    identity = "12345678-1234-1234-1234-123456789abc"
    spec = {"bdev_name": "one", "nsid": 5, "uuid": identity, "nguid": "00112233445566778899AABBCCDDEEFF"}
    assert await rpc.call("nvmf_subsystem_add_ns", nqn=NQN, namespace={**spec, "eui64": "0102030405060708"}) == 5
    (subsystem,) = await rpc.call("nvmf_get_subsystems", nqn=NQN)
    assert subsystem["namespaces"] == [
        {
            "nsid": 5, "bdev_name": "one", "name": "one", "nguid": "00112233445566778899AABBCCDDEEFF",
            "eui64": "0102030405060708", "uuid": identity,
        }
    ]  # fmt: skip
    for wrong in ({"nsid": 9}, {"nsid": -1}, {"nsid": 5}, {"uuid": "x"}, {"nguid": "00"}, {"anagrpid": 9}, {"x": 1}):
        fault = await rpc.fault("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "two", **wrong})
        assert fault == (-32602, "Invalid parameters"), wrong
    assert rpc.bdevs.get("two").claimed_by is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "params",
    [
        {"serial_number": "x" * 21}, {"serial_number": "ü"}, {"model_number": "x" * 41}, {"model_number": "a\nb"},
        {"max_namespaces": -1}, {"min_cntlid": 0}, {"max_cntlid": 65520}, {"min_cntlid": 9, "max_cntlid": 8},
        {"nqn": 5}, {"colour": "red"}, {"allow_any_host": "yes"}, {"wzsl": 256}, {"max_write_zeroes_size_kib": 9},
    ],
)  # fmt: skip
async def test_subsystems_that_cannot_be(rpc: Rpc, params: dict[str, Any]) -> None:
    assert (await rpc.fault("nvmf_create_subsystem", **{"nqn": NQN, **params}))[0] == -32602
    assert len(await rpc.call("nvmf_get_subsystems")) == 1


async def test_other_targets_do_not_exist(rpc: Rpc) -> None:
    await rpc.subsystem(tgt_name="nvmf_tgt")
    assert await rpc.fault("nvmf_get_subsystems", tgt_name="x") == (-32603, "Unable to find a target.")
    assert await rpc.fault("nvmf_delete_subsystem", nqn=NQN, tgt_name="x") == (-32603, "Unable to find a target.")
    assert await rpc.fault("nvmf_create_subsystem", nqn=NQN + "2", tgt_name="x") == (
        -32603,
        "Unable to find target x",
    )


@pytest.mark.parametrize("wrong", [{"max_io_size": 4096}, {"max_io_size": 9000}, {"kas": 0}, {"min_kato": 0}])
async def test_transports_that_cannot_be(rpc: Rpc, wrong: dict[str, int]) -> None:
    assert (await rpc.fault("nvmf_create_transport", trtype="TCP", **wrong))[0] == -32603
    assert await rpc.fault("nvmf_create_transport", trtype="RDMA") == (-32602, "Invalid transport type 'RDMA'")
    assert await rpc.fault("nvmf_get_transports", trtype="TCP") == (-19, "No such device")
    assert await rpc.call("nvmf_create_transport", trtype="TCP", kas=10, min_kato=1500, buf_cache_size=5) is True
    (transport,) = await rpc.call("nvmf_get_transports")
    assert (transport["kas"], transport["min_kato"]) == (10, 2000)


async def test_masked_commands_are_neither_offered_nor_done(rpc: Rpc) -> None:
    assert (await rpc.fault("nvmf_create_transport", trtype="TCP", masked_oncs=["trim"]))[0] == -32602
    assert await rpc.call("nvmf_create_transport", trtype="TCP", masked_oncs=["nvmdsmsv", "nvmcpys"]) is True


async def test_controllers_and_queues_are_listed(rpc: Rpc) -> None:
    await rpc.call("nvmf_create_transport", trtype="TCP")
    await rpc.subsystem()
    port = free_port()
    await rpc.call("nvmf_subsystem_add_listener", nqn=NQN, listen_address=_listen(port))
    await rpc.call("nvmf_subsystem_add_host", nqn=NQN, host=HOST)
    controller = await initiator.connect("127.0.0.1", port, NQN, HOST)
    hostid = HOST.rpartition(":")[2]
    assert await rpc.call("nvmf_subsystem_get_controllers", nqn=NQN) == [
        {"cntlid": 1, "cntrltype": "io", "hostnqn": HOST, "hostid": hostid, "num_io_qpairs": 2}
    ]
    queues = await rpc.call("nvmf_subsystem_get_qpairs", nqn=NQN)
    assert [(queue["qid"], queue["state"], queue["listen_address"]) for queue in queues] == [
        (0, "enabled", _listen(port)),
        (1, "enabled", _listen(port)),
    ]
    (group,) = (await rpc.call("nvmf_get_stats"))["poll_groups"]
    assert (group["current_admin_qpairs"], group["current_io_qpairs"]) == (1, 1)
    await rpc.call("nvmf_subsystem_remove_host", nqn=NQN, host=HOST)
    assert await rpc.call("nvmf_subsystem_get_controllers", nqn=NQN) == []
    await controller.close()


async def test_thousands_of_subsystems_do_not_slow_a_call(rpc: Rpc) -> None:
    for number in range(3000):
        await rpc.subsystem(f"{NQN}{number}")
    begun = time.perf_counter()
    for number in range(3000, 3200):
        await rpc.subsystem(f"{NQN}{number}")
        await rpc.call("nvmf_get_subsystems", nqn=f"{NQN}{number}")
        await rpc.call("nvmf_subsystem_add_host", nqn=f"{NQN}{number}", host=HOST)
        await rpc.call("nvmf_delete_subsystem", nqn=f"{NQN}{number}")
    assert (time.perf_counter() - begun) / 200 < 0.005


@pytest.mark.parametrize(
    ("nqn", "valid"),
    [
        ("nqn.2014-08.org.nvmexpress.discovery", True),
        (HOST, True),
        (HOST + "0", False),
        ("nqn.2014-08.org.nvmexpress:uuid:not-a-uuid", False),
        ("nqn.2026-11.storage.quarry:vol:v1", True),
        ("nqn.2026-11.storage.quarry:", False),
        ("nqn.2026-11.storage.quarry", False),
        ("nqn.2026-11.storage.-quarry:v", False),
        ("nqn.2026-11.storage.quarry-:v", False),
        ("nqn.2026-11.1storage:v", False),
        ("nqn.2026-11..quarry:v", False),
        ("nqn.26-11.storage.quarry:v", False),
        ("iqn.2026-11.storage.quarry:v", False),
        ("nqn.2026-11.a:" + "x" * 209, True),
        ("nqn.2026-11.a:" + "x" * 210, False),
        ("nqn.2026-11." + "a" * 64 + ":v", True),
        ("nqn.2026-11." + "a" * 65 + ":v", False),
        ("", False),
        ("not-an-nqn", False),
    ],
)
def test_qualified_names(nqn: str, valid: bool) -> None:
    assert is_valid(nqn) is valid
