"""The process, its methods, its notifications, and what it answers to bad JSON-RPC."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import pytest

from agent.errors import RpcError
from agent.spdk import app, bdev
from agent.spdk.client import Client

from .targets import Target
from .waiting import refused

MIB = 1024 * 1024


async def test_version_and_process(rpc: Client, target: Target) -> None:
    assert (await app.version(rpc)).startswith("SPDK v26.")
    assert (await app.reactors(rpc)).pid == target.pid
    assert rpc.peer_pid == target.pid


async def test_methods(rpc: Client) -> None:
    methods = await app.methods(rpc)
    assert len(methods) == len(set(methods))
    assert {"bdev_lvol_create", "nvmf_create_subsystem", "rpc_get_methods"} <= set(methods)
    assert await refused(rpc.call("no_such_method")) == -32601
    assert await refused(rpc.call("framework_start_init")) == -1


async def test_notifications_follow_bdevs(rpc: Client, name: Callable[[str], str]) -> None:
    assert {"bdev_register", "bdev_unregister", "bdev_resize"} <= set(await app.notification_types(rpc))
    before = await app.notifications(rpc)
    next_id = before[-1].id + 1 if before else 0
    malloc = name("m")
    await bdev.malloc_create(rpc, malloc, MIB)
    await bdev.malloc_delete(rpc, malloc)
    mine = [n for n in await app.notifications(rpc, first_id=next_id) if n.ctx == malloc]
    assert [n.type for n in mine] == ["bdev_register", "bdev_unregister"]
    assert [n.id for n in await app.notifications(rpc, first_id=mine[0].id, limit=1)] == [mine[0].id]


async def test_params_of_wrong_form(rpc: Client) -> None:
    for method, params in [
        ("bdev_get_iostat", {"name": "x"}),
        ("bdev_get_bdevs", {"name": 1}),
        ("bdev_get_bdevs", {"nam": "x"}),
        ("bdev_lvol_create", {"lvol_name": "n", "lvs_name": "none"}),
        ("bdev_lvol_create", {"lvol_name": "n", "lvs_name": "none", "size_in_mib": "10"}),
        ("bdev_lvol_create", {"lvol_name": "n", "lvs_name": "none", "size_in_mib": -1}),
        ("bdev_lvol_create", {"lvol_name": "n", "lvs_name": "none", "size_in_mib": 1, "unknown_key": 1}),
    ]:
        with pytest.raises(RpcError) as caught:
            await rpc.call(method, params)
        assert (caught.value.code, caught.value.message) == (-32603, "spdk_json_decode_object failed"), method


WAIT = '{"jsonrpc":"2.0","id":7,"method":"framework_wait_init"}'
INVALID = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Invalid request"}}
DECODE = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "spdk_json_decode_object failed"}}

# What is sent: the answers to it (measured with v26.05), and whether the target hangs up.
ON_THE_WIRE: list[tuple[str, list[object], bool]] = [
    (WAIT, [{"jsonrpc": "2.0", "id": 7, "result": True}], False),
    (WAIT + WAIT, [{"jsonrpc": "2.0", "id": 7, "result": True}] * 2, False),
    ('{"id":1,"method":"framework_wait_init"}', [{"jsonrpc": "2.0", "id": 1, "result": True}], False),
    (WAIT.replace("7", '"abc"'), [{"jsonrpc": "2.0", "id": "abc", "result": True}], False),
    (WAIT.replace('"2.0"', '"1.0"'), [INVALID], False),
    ('{"jsonrpc":"2.0","id":1}', [INVALID], False),
    ('{"jsonrpc":"2.0","id":1,"method":5}', [INVALID], False),
    ('{"jsonrpc":"2.0","id":[1],"method":"framework_wait_init"}', [INVALID], False),
    (WAIT.replace("}", ',"extra":1}'), [INVALID], False),
    ("5", [INVALID], False),
    ("[]", [INVALID], False),
    ('{"jsonrpc":"2.0","method":"framework_wait_init"}', [], False),
    (WAIT.replace("}", ',"params":"x"}'), [INVALID | {"id": 7}], False),
    ('{"jsonrpc":"2.0","id":1,"method":"bdev_get_bdevs","params":[]}', [DECODE], False),
    ('{"jsonrpc":"2.0","id":1,"method":"bdev_get_bdevs","params":{"name":"a","name":"b"}}', [DECODE], False),
    ('{"jsonrpc":"2.0","id":1,"method":"bdev_get_bdevs","params":{"name":"\\u0000x"}}', [DECODE], False),
    ("hello", [], True),
    ('{"jsonrpc":"2.0","id":1,"method":}', [], True),
    (WAIT + "}", [], True),
    ("/* comment */" + WAIT, [], True),
    ('{"jsonrpc":"2.0","id":1,"method":"bdev_get_bdevs","params":{"name":"' + "x" * 262144 + '"}}', [], True),
]


@pytest.mark.parametrize(("sent", "answers", "hangs_up"), ON_THE_WIRE, ids=[s[:60] for s, _, _ in ON_THE_WIRE])
async def test_on_the_wire(rpc: Client, target: Target, sent: str, answers: list[object], hangs_up: bool) -> None:
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(str(target.socket_path))
        wire.sendall(sent.encode())
        got, closed = _receive(wire, len(answers), hangs_up)
    assert got == answers
    assert closed == hangs_up
    assert await app.reactors(rpc)  # others are not disturbed


def _receive(wire: socket.socket, wanted: int, until_closed: bool) -> tuple[list[object], bool]:
    """The answers, and whether the target closed the connection; silence is believed after a quarter second."""
    wire.settimeout(0.25 if not until_closed else 5.0)
    text, closed = "", False
    deadline = time.monotonic() + 5
    try:
        while (until_closed or text.count("\n") <= wanted) and time.monotonic() < deadline:
            data = wire.recv(65536)
            if not data:
                closed = True
                break
            text += data.decode()
    except TimeoutError:
        pass
    except ConnectionResetError:
        closed = True
    return [json.loads(line) for line in text.splitlines()], closed
