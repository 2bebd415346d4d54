"""The JSON-RPC server: what SPDK v26.05 answers to the same bytes, and who may listen where."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.embedded.framing import MAX_REQUEST_BYTES, Malformed, RequestStream
from agent.embedded.rpc import U64, Methods, NoParams, Params, RpcFault
from agent.embedded.server import FileLock, JsonRpcServer
from agent.errors import FailedPrecondition, InvalidArgument

PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
PONG = {"jsonrpc": "2.0", "id": 1, "result": True}
INVALID = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Invalid request"}}


class Echo(Params):
    value: U64
    text: str | None = None


class Gate:
    """Methods of the test: `wait` is answered when the test opens the gate."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.waited = 0
        self.methods = Methods()
        self.methods.add("ping", NoParams, self.ping)
        self.methods.add("echo", Echo, self.echo)
        self.methods.add("wait", NoParams, self.wait)
        self.methods.add("break", NoParams, self.break_down)

    async def ping(self, params: NoParams) -> bool:
        return True

    async def echo(self, params: Echo) -> int:
        return params.value

    async def wait(self, params: NoParams) -> str:
        await self.open.wait()
        self.waited += 1
        return "waited"

    async def break_down(self, params: NoParams) -> None:
        raise ZeroDivisionError("a bug")


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def path(gate: Gate, socket_dir: Path) -> AsyncIterator[Path]:
    server = JsonRpcServer(gate.methods, socket_dir / "rpc.sock")
    await server.start()
    yield socket_dir / "rpc.sock"
    await server.stop()


async def talk(path: Path, data: bytes, answers: int) -> list[Any]:
    """The first `answers` answers to `data`; a closed connection is None."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(data)
        async with asyncio.timeout(5):
            lines = [await reader.readline() for _ in range(answers)]
        return [json.loads(line) if line else None for line in lines]
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (PING, PONG),
        (b'\n {"id":"a","method":"ping","params":null} \n', {**PONG, "id": "a"}),
        (b'{"id":1.5,"method":"ping"}', {**PONG, "id": 1.5}),
        (
            b'{"method":"nope"}',
            {"jsonrpc": "2.0", "id": None, "error": {"code": -32601, "message": "Method not found"}},
        ),
        (b'{"id":[1],"method":"ping"}', INVALID),
        (b'{"id":true,"method":"ping"}', INVALID),
        (b'{"id":1}', INVALID),
        (b'{"id":1,"method":5}', INVALID),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', INVALID),
        (b'{"id":1,"method":"ping","more":1}', INVALID),
        (b'{"id":1,"id":2,"method":"ping"}', INVALID),
        (b'{"id":1,"method":"ping","params":5}', {**INVALID, "id": 1}),
        (b"[]", INVALID),
        (b"5 ", INVALID),
        (b'"x"', INVALID),
        (b"null", INVALID),
        (b"[" + PING + b"," + PING + b"]", [PONG, PONG]),
        (b"[" + PING + b",5]", [PONG, INVALID]),
        (b"garbage", None),
        (b'{"a":}', None),
        (b"}", None),
        (b"/*c*/" + PING, None),
        (b"{'id':1}", None),
        (b'{"id":1,"method":"\xff"}', None),
        (b'{"id":NaN,"method":"ping"}', None),
        (b'{"id":"\\ud800","method":"ping"}', None),
        (b"[" + b"1," * 9000 + b"1]", None),
        (b"[" * 100_000, None),
        (b'{"id":1,"method":"' + b"x" * MAX_REQUEST_BYTES, None),
    ],
)
async def test_answers_like_the_real_one(path: Path, sent: bytes, answer: Any) -> None:
    assert await talk(path, sent, 1) == [answer]
    assert await talk(path, PING, 1) == [PONG], "the server goes on"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"value": 1}, None),
        ({"value": 1.0}, None),
        ({"value": 1e2}, None),
        ({"value": 2**64 - 1}, None),
        ({"value": 2**64}, -32603),
        ({"value": -1}, -32603),
        ({"value": 1.5}, -32603),
        ({"value": "1"}, -32603),
        ({"value": True}, -32603),
        ({"value": None}, -32603),
        ({"value": 1, "text": None}, -32603),
        ({"value": 1, "text": "a\0b"}, -32603),
        ({"value": 1, "more": 1}, -32603),
        ({}, -32603),
        ([1], -32603),
    ],
)
async def test_parameters_are_decoded_as_strictly(gate: Gate, params: Any, code: int | None) -> None:
    try:
        await gate.methods.call("echo", params)
    except RpcFault as fault:
        assert fault.code == code
    else:
        assert code is None


async def test_a_method_without_parameters_refuses_even_none_of_them(path: Path) -> None:
    (answer,) = await talk(path, b'{"id":1,"method":"ping","params":{}}', 1)
    assert answer["error"] == {"code": -32602, "message": "ping requires no parameters"}


async def test_a_call_that_waits_does_not_hold_up_others(path: Path, gate: Gate) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(b'{"id":"slow","method":"wait"}' + PING * 3)
        async with asyncio.timeout(5):
            assert [json.loads(await reader.readline()) for _ in range(3)] == [PONG] * 3
            gate.open.set()
            assert json.loads(await reader.readline())["id"] == "slow"
    finally:
        writer.close()


async def test_a_client_that_leaves_does_not_stop_its_call(path: Path, gate: Gate) -> None:
    _, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b'{"id":"slow","method":"wait"}')
    await writer.drain()
    assert await talk(path, PING, 1) == [PONG]
    writer.close()
    await writer.wait_closed()
    assert await talk(path, PING, 1) == [PONG]
    gate.open.set()
    assert await talk(path, b'{"id":1,"method":"wait"}', 1) == [{**PONG, "result": "waited"}]
    assert gate.waited == 2


async def test_half_closed_connections_get_their_answers_first(path: Path, gate: Gate) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(PING + b'{"id":2,"method":"wait"}')
    writer.write_eof()
    async with asyncio.timeout(5):
        assert json.loads(await reader.readline()) == PONG
        gate.open.set()
        assert json.loads(await reader.readline())["result"] == "waited"
        assert await reader.readline() == b""
    writer.close()


async def test_a_request_without_id_is_carried_out_and_not_answered(path: Path, gate: Gate) -> None:
    gate.open.set()
    assert await talk(path, b'{"method":"wait"}' + PING, 1) == [PONG]
    assert gate.waited == 1


async def test_a_bug_in_a_method_is_an_error_answer(path: Path) -> None:
    first, second = await talk(path, b'{"id":1,"method":"break"}' + PING, 2)
    assert first["error"]["code"] == -32603
    assert second == PONG


async def test_thousands_of_pipelined_calls_are_answered_in_order(path: Path) -> None:
    count = 5000
    calls = b"".join(b'{"id":%d,"method":"echo","params":{"value":%d}}' % (n, n) for n in range(count))
    assert [answer["result"] for answer in await talk(path, calls, count)] == list(range(count))


async def test_the_socket_of_a_dead_target_is_taken_over(gate: Gate, socket_dir: Path) -> None:
    path = socket_dir / "rpc.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = JsonRpcServer(gate.methods, path)
    await server.start()
    assert await talk(path, PING, 1) == [PONG]
    await server.stop()
    assert not path.exists()


async def test_the_socket_of_a_living_target_is_refused(path: Path, gate: Gate) -> None:
    with pytest.raises(FailedPrecondition, match=r"already serves .*rpc\.sock"):
        await JsonRpcServer(gate.methods, path).start()
    assert await talk(path, PING, 1) == [PONG]


async def test_a_path_too_long_for_a_socket_is_refused(gate: Gate, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="shorter"):
        await JsonRpcServer(gate.methods, tmp_path / ("x" * 108)).start()


def test_a_lock_is_free_again_when_released(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock", "the test")
    with pytest.raises(FailedPrecondition, match="the test is in use"):
        FileLock(tmp_path / "lock", "the test")
    lock.release()
    FileLock(tmp_path / "lock", "the test").release()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4),
    max_leaves=10,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=4), max_size=4),
    st.booleans(),
    st.lists(st.integers(0, 400)),
)
def test_values_arrive_whole_however_the_bytes_are_cut(values: list[Any], ascii_only: bool, cuts: list[int]) -> None:
    data = "".join(json.dumps(value, ensure_ascii=ascii_only) for value in values).encode()
    stream, received, start = RequestStream(), [], 0
    for cut in [*sorted(cuts), len(data)]:
        received += list(stream.feed(data[start:cut]))
        start = max(start, min(cut, len(data)))
    assert received == values


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_do_more_than_close_the_connection(data: bytes, cut: int) -> None:
    stream = RequestStream()
    try:
        for part in (data[:cut], data[cut:]):
            list(stream.feed(part))
    except Malformed:
        pass


async def test_only_a_socket_that_nobody_serves_is_replaced(gate: Gate, socket_dir: Path) -> None:
    path = socket_dir / "theirs"
    path.write_text("precious")
    server = JsonRpcServer(gate.methods, path)
    with pytest.raises(FailedPrecondition, match="not a socket: it is left alone"):
        await server.start()
    await server.stop()
    assert path.read_text() == "precious"
    assert not (socket_dir / "theirs.lock").exists(), "and nothing is put beside it"

    link = socket_dir / "link"
    link.symlink_to(path)
    with pytest.raises(FailedPrecondition, match="not a socket"):
        await JsonRpcServer(gate.methods, link).start()
    assert link.is_symlink()


async def test_a_socket_of_another_program_is_left_alone(gate: Gate, socket_dir: Path) -> None:
    path = socket_dir / "spdk.sock"
    theirs = await asyncio.start_unix_server(lambda reader, writer: None, path)
    with pytest.raises(FailedPrecondition, match="already serves"):
        await JsonRpcServer(gate.methods, path).start()
    theirs.close()
    assert path.is_socket()
    ours = JsonRpcServer(gate.methods, path)
    await ours.start()  # nobody serves it any more
    path.unlink()
    path.write_text("put there meanwhile")
    await ours.stop()
    assert path.read_text() == "put there meanwhile"
