"""Every typed call, issued against a recording peer, asks for what SPDK's schema says the method takes."""

from __future__ import annotations

import base64
import inspect
import json
import struct
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import Any

import pytest

from agent.errors import InvalidArgument, RpcError, Unavailable
from agent.host.nvme_admin import Answer, Command
from agent.spdk import app, bdev, lvol, nvme_controller, nvmf, raid, ublk

from .schema import Schema, find_schema

UUID = "a1459c06-60c6-4695-87ac-ae09b272b61b"
MIB = 1024 * 1024
NQN = "nqn.2026-11.storage.quarry:vol:v1"
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"


IDENTIFY = Command(0x06, cdw10=1, reads=4096)


def cpl(status: int, result: int = 0) -> str:
    """The 16 bytes of a completion: dword 0, dword 1, head and queue, identifier, and status beside the phase bit."""
    return base64.urlsafe_b64encode(struct.pack("<IIHHHH", result, 0, 7, 0, 9, status << 1 | 1)).decode()


class Recorder:
    """An Rpc that writes down what is asked and answers `result`."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.requests: list[tuple[str, dict[str, Any]]] = []

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        self.requests.append((method, json.loads(json.dumps(params or {}))))
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


Call = Callable[[Recorder], Awaitable[Any]]

# (name of the typed function, the call with everything it can send, a result it accepts)
CALLS: list[tuple[str, Call, Any]] = [
    ("app.version", app.version, {"version": "SPDK v26.05"}),
    ("app.wait_init", app.wait_init, True),
    ("app.reactors", app.reactors, {"pid": 1, "tick_rate": 2}),
    ("app.methods", app.methods, ["a"]),
    ("app.pollers", app.pollers, {"tick_rate": 1, "threads": []}),
    ("app.notification_types", app.notification_types, ["bdev_register"]),
    ("app.notifications", lambda r: app.notifications(r, first_id=3, limit=9), []),
    ("bdev.get", lambda r: bdev.get(r, "d0"), []),
    ("bdev.list_all", bdev.list_all, []),
    ("bdev.wait_for_examine", bdev.wait_for_examine, True),
    ("bdev.aio_create", lambda r: bdev.aio_create(r, "d0", "/d", 4096, uuid=UUID), "d0"),
    ("bdev.aio_create", lambda r: bdev.aio_create(r, "d0", "/d"), "d0"),
    ("bdev.aio_delete", lambda r: bdev.aio_delete(r, "d0"), True),
    ("bdev.aio_rescan", lambda r: bdev.aio_rescan(r, "d0"), True),
    ("bdev.uring_create", lambda r: bdev.uring_create(r, "d0", "/d", 4096, uuid=UUID), "d0"),
    ("bdev.uring_delete", lambda r: bdev.uring_delete(r, "d0"), True),
    ("bdev.uring_rescan", lambda r: bdev.uring_rescan(r, "d0"), True),
    ("bdev.malloc_create", lambda r: bdev.malloc_create(r, "m", MIB, 512, uuid=UUID), "m"),
    ("bdev.malloc_delete", lambda r: bdev.malloc_delete(r, "m"), True),
    ("bdev.set_qos", lambda r: bdev.set_qos(r, "m", rw_iops=1000, rw_mbps=2, r_mbps=3, w_mbps=4), True),
    ("bdev.iostat", lambda r: bdev.iostat(r, ["a", "b"]), {"tick_rate": 1, "ticks": 2, "bdevs": [{"name": "a"}]}),
    ("bdev.iostat", bdev.iostat, {"tick_rate": 1, "ticks": 2, "bdevs": []}),
    ("bdev.enable_histogram", lambda r: bdev.enable_histogram(r, "a", False), True),
    ("bdev.histogram", lambda r: bdev.histogram(r, "a"), {"histogram": "", "granularity": 7, "tsc_rate": 1}),
    (
        "lvol.create_lvstore",
        lambda r: lvol.create_lvstore(r, "d0", "p", cluster_bytes=MIB, md_ratio=300, clear_method="unmap"),
        UUID,
    ),
    ("lvol.get_lvstore", lambda r: lvol.get_lvstore(r, "p"), []),
    ("lvol.list_lvstores", lvol.list_lvstores, []),
    ("lvol.grow_lvstore", lambda r: lvol.grow_lvstore(r, "p"), True),
    ("lvol.rename_lvstore", lambda r: lvol.rename_lvstore(r, "p", "q"), True),
    ("lvol.delete_lvstore", lambda r: lvol.delete_lvstore(r, "p"), True),
    ("lvol.list_lvols", lambda r: lvol.list_lvols(r, "p"), []),
    ("lvol.create", lambda r: lvol.create(r, "p", "v", 8 * MIB, thin=False, clear_method="none"), UUID),
    ("lvol.create", lambda r: lvol.create(r, "p", "v", MIB), UUID),
    ("lvol.delete", lambda r: lvol.delete(r, "p/v"), True),
    ("lvol.resize", lambda r: lvol.resize(r, "p/v", 4 * MIB), True),
    ("lvol.snapshot", lambda r: lvol.snapshot(r, "p/v", "s"), UUID),
    ("lvol.clone", lambda r: lvol.clone(r, "p/s", "c"), UUID),
    ("lvol.decouple_parent", lambda r: lvol.decouple_parent(r, "p/c"), True),
    ("lvol.inflate", lambda r: lvol.inflate(r, "p/c"), True),
    ("lvol.rename", lambda r: lvol.rename(r, "p/c", "d"), True),
    ("lvol.set_read_only", lambda r: lvol.set_read_only(r, "p/c"), True),
    (
        "nvmf.create_transport",
        lambda r: nvmf.create_transport(r, max_queue_depth=128, max_io_size=131072, in_capsule_data_size=4096),
        True,
    ),
    ("nvmf.create_transport", nvmf.create_transport, True),
    ("nvmf.create_transport", lambda r: nvmf.create_transport(r, masked_oncs=[nvmf.DATASET_MANAGEMENT]), True),
    ("nvmf.get_transport", nvmf.get_transport, []),
    ("nvmf.create_subsystem", lambda r: nvmf.create_subsystem(r, NQN, "S", "M", max_namespaces=2), True),
    ("nvmf.create_subsystem", lambda r: nvmf.create_subsystem(r, NQN, "S", "M", dmrsl=0), True),
    ("nvmf.delete_subsystem", lambda r: nvmf.delete_subsystem(r, NQN), True),
    ("nvmf.ensure_no_subsystem", lambda r: nvmf.ensure_no_subsystem(r, NQN), True),
    ("nvmf.max_subsystems", nvmf.max_subsystems, []),
    ("nvmf.stats", nvmf.stats, {"tick_rate": 1, "poll_groups": []}),
    ("nvmf.get_subsystem", lambda r: nvmf.get_subsystem(r, NQN), []),
    ("nvmf.list_subsystems", nvmf.list_subsystems, []),
    ("nvmf.add_namespace", lambda r: nvmf.add_namespace(r, NQN, "p/v", nsid=1, uuid=UUID, nguid="A" * 32), 1),
    ("nvmf.add_namespace", lambda r: nvmf.add_namespace(r, NQN, "p/v"), 1),
    ("nvmf.remove_namespace", lambda r: nvmf.remove_namespace(r, NQN, 1), True),
    ("nvmf.add_host", lambda r: nvmf.add_host(r, NQN, HOST), True),
    ("nvmf.remove_host", lambda r: nvmf.remove_host(r, NQN, HOST), True),
    (
        "nvmf.add_listener",
        lambda r: nvmf.add_listener(r, NQN, "::1", 4420, ana_state=nvmf.AnaState.NON_OPTIMIZED),
        True,
    ),
    ("nvmf.add_listener", lambda r: nvmf.add_listener(r, NQN, "127.0.0.1", 4420), True),
    ("nvmf.remove_listener", lambda r: nvmf.remove_listener(r, NQN, "127.0.0.1", 4420), True),
    ("nvmf.get_listeners", lambda r: nvmf.get_listeners(r, NQN), []),
    (
        "nvmf.set_ana_state",
        lambda r: nvmf.set_ana_state(r, NQN, "127.0.0.1", 4420, nvmf.AnaState.INACCESSIBLE),
        True,
    ),
    ("nvmf.get_controllers", lambda r: nvmf.get_controllers(r, NQN), []),
    ("nvmf.get_qpairs", lambda r: nvmf.get_qpairs(r, NQN), []),
    ("raid.create", lambda r: raid.create(r, "r", ["a", "b"], uuid=UUID), True),
    ("raid.delete", lambda r: raid.delete(r, "r"), True),
    ("raid.get", lambda r: raid.get(r, "r"), []),
    ("raid.list_all", lambda r: raid.list_all(r, "configuring"), []),
    ("raid.add_base", lambda r: raid.add_base(r, "r", "b"), True),
    ("raid.remove_base", lambda r: raid.remove_base(r, "b"), True),
    (
        "nvme_controller.attach",
        lambda r: nvme_controller.attach(
            r, "c", "127.0.0.1", 4420, NQN, hostnqn=HOST, loss=nvme_controller.LossPolicy(ctrlr_loss_timeout_sec=-1)
        ),
        ["cn1"],
    ),
    ("nvme_controller.attach", lambda r: nvme_controller.attach(r, "c", "::1", 4420, NQN), ["cn1"]),
    (
        "nvme_controller.attach_pcie",
        lambda r: nvme_controller.attach_pcie(r, "c", "0000:05:00.0", timeout_s=60),
        ["cn1"],
    ),
    ("nvme_controller.health", lambda r: nvme_controller.health(r, "c"), {"temperature_celsius": 40}),
    ("nvme_controller.send", lambda r: nvme_controller.send(r, "c", Command(0x09, cdw10=6)), {"cpl": cpl(0)}),
    ("nvme_controller.send", lambda r: nvme_controller.send(r, "c", IDENTIFY), {"cpl": cpl(0), "data": "AAAA"}),
    ("nvme_controller.flush", lambda r: nvme_controller.flush(r, "c", 1), {"cpl": cpl(0)}),
    ("nvme_controller.detach", lambda r: nvme_controller.detach(r, "c"), True),
    ("nvme_controller.get", lambda r: nvme_controller.get(r, "c"), []),
    ("nvme_controller.list_all", nvme_controller.list_all, []),
    ("lvol.set_parent", lambda r: lvol.set_parent(r, "p/v", "p/s"), True),
    ("ublk.create_target", ublk.create_target, True),
    ("ublk.start_disk", lambda r: ublk.start_disk(r, UUID, 1, num_queues=2), 1),
    ("ublk.recover_disk", lambda r: ublk.recover_disk(r, UUID, 1), 1),
    ("ublk.stop_disk", lambda r: ublk.stop_disk(r, 1), True),
    ("ublk.get", lambda r: ublk.get(r, 1), [{"id": 1, "ublk_device": "/dev/ublkb1", "bdev_name": UUID}]),
    ("ublk.list_all", ublk.list_all, []),
]
MODULES: tuple[ModuleType, ...] = (app, bdev, lvol, nvme_controller, nvmf, raid, ublk)


def test_no_typed_call_is_left_out() -> None:
    defined = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.iscoroutinefunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert {name for name, _, _ in CALLS} == defined


@pytest.mark.parametrize(("name", "call", "result"), CALLS, ids=[f"{n}-{c[0]}" for n, c in enumerate(CALLS)])
async def test_calls_follow_the_schema(name: str, call: Call, result: Any) -> None:
    recorder = Recorder(result)
    await call(recorder)
    assert len(recorder.requests) == 1
    path = find_schema()
    if path is None:
        pytest.skip("SPDK's schema.json is absent (SPDK_SCHEMA)")
    assert Schema(path).problems(*recorder.requests[0]) == []


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("bdev_get_iostat", {"name": "d0"}),
        ("bdev_lvol_create", {"lvol_name": "n", "size_in_mib": "10"}),
        ("bdev_lvol_create", {"lvol_name": "n"}),
        ("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev": "x"}}),
        ("bdev_raid_get_bdevs", {"category": "every"}),
        ("bdev_raid_create", {"name": "r", "raid_level": "raid1", "base_bdevs": [1]}),
        ("bdev_lvol_create", {"lvol_name": "n", "size_in_mib": -1}),
        ("no_such_method", {}),
    ],
)
def test_the_schema_checker_finds_faults(method: str, params: dict[str, Any]) -> None:
    path = find_schema()
    if path is None:
        pytest.skip("SPDK's schema.json is absent (SPDK_SCHEMA)")
    assert Schema(path).problems(method, params)


LOOKUPS: list[tuple[Call, int]] = [
    (lambda r: bdev.get(r, "x"), -19),
    (lambda r: lvol.get_lvstore(r, "x"), -19),
    (lambda r: nvmf.get_subsystem(r, NQN), -19),
    (nvmf.get_transport, -19),
    (lambda r: raid.get(r, "x"), -19),
    (lambda r: nvme_controller.get(r, "x"), -22),
    (lambda r: ublk.get(r, 3), -19),
]


@pytest.mark.parametrize(("call", "absent_code"), LOOKUPS)
async def test_absent_is_an_answer_and_failure_is_not(call: Call, absent_code: int) -> None:
    assert await call(Recorder(RpcError("m", absent_code, "no"))) is None
    with pytest.raises(RpcError):
        await call(Recorder(RpcError("m", -32603, "Internal error")))


@pytest.mark.parametrize("size_bytes", [0, -MIB, 1, MIB + 512])
async def test_sizes_that_are_no_whole_mebibytes_are_refused_before_anything_is_sent(size_bytes: int) -> None:
    recorder = Recorder()
    with pytest.raises(InvalidArgument, match="multiple of 1 MiB"):
        await lvol.create(recorder, "p", "v", size_bytes)
    with pytest.raises(InvalidArgument, match="multiple of 1 MiB"):
        await lvol.resize(recorder, "p/v", size_bytes)
    assert recorder.requests == []


async def test_a_command_is_the_64_bytes_that_a_controller_takes() -> None:
    recorder = Recorder({"cpl": cpl(0x10D, 5), "data": base64.urlsafe_b64encode(b"abc").decode()})
    command = Command(0x09, nsid=3, cdw10=0x80000006, cdw11=1)
    assert await nvme_controller.send(recorder, "c", command) == Answer(0x10D, 5, b"abc")
    ((_, params),) = recorder.requests
    entry = base64.urlsafe_b64decode(params["cmdbuf"])
    assert len(entry) == 64
    assert (entry[0], struct.unpack_from("<I", entry, 4)[0]) == (0x09, 3)
    assert struct.unpack_from("<6I", entry, 40) == (0x80000006, 1, 0, 0, 0, 0)
    with pytest.raises(RpcError, match="does not flush"):
        await nvme_controller.flush(Recorder({"cpl": cpl(0x281)}), "c", 1)
    with pytest.raises(RpcError, match="cannot be read"):
        await nvme_controller.send(Recorder({"cpl": "AAAA"}), "c", command)


async def test_an_answer_of_another_form_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="bdev_get_bdevs: the answer has an unexpected form"):
        await bdev.get(Recorder([{"name": 1}]), "x")
    with pytest.raises(Unavailable):
        await lvol.create(Recorder(True), "p", "v", MIB)


async def test_qos_repeats_while_an_earlier_change_settles() -> None:
    class Settling(Recorder):
        async def call(self, *args: Any, **options: Any) -> Any:
            await super().call(*args, **options)
            if len(self.requests) < 3:
                raise RpcError("bdev_set_qos_limit", -32602, "Resource temporarily unavailable")
            return True

    settling = Settling()
    await bdev.set_qos(settling, "v", rw_iops=2000)
    assert len(settling.requests) == 3
    with pytest.raises(RpcError):
        await bdev.set_qos(Recorder(RpcError("m", -32602, "no")), "v", rw_iops=1, settle_s=0.03)
    absent = Recorder(RpcError("m", -19, "No such device"))
    with pytest.raises(RpcError):
        await bdev.set_qos(absent, "v", rw_iops=1)
    assert len(absent.requests) == 1
