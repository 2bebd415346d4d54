"""The JSON-RPC client against a hostile server on a real UNIX socket."""

from __future__ import annotations

import asyncio
import copy
import os
import time
from pathlib import Path
from typing import Any

import pytest

from agent.errors import DeadlineExceeded, InvalidArgument, RpcError, TransportClosed, Unavailable
from agent.spdk.client import MAX_REQUEST_BYTES, Client

from .scripted import Peer, ScriptedServer, answer, echo, error


def client_of(server: ScriptedServer, **options: Any) -> Client:
    options.setdefault("call_timeout_s", 10.0)
    return Client(server.path, reconnect_min_s=0.005, reconnect_max_s=0.05, **options)


async def eventually(condition: Any, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.002)


async def test_call_result_and_connection_facts() -> None:
    async with ScriptedServer(echo) as server, client_of(server) as client:
        await client.wait_connected(5)
        assert client.connected and client.generation == 1
        assert client.peer_pid == os.getpid()
        assert await client.call("m", {"a": [1, {"b": "ü"}]}) == {"a": [1, {"b": "ü"}]}
        assert await client.call("m") is None
        assert client.calls == {"m": 2}


async def test_request_on_the_wire() -> None:
    seen: list[dict[str, Any]] = []

    async def script(peer: Peer) -> None:
        for _ in range(3):
            seen.append(await peer.request())
            await peer.answer(seen[-1], True)

    async with ScriptedServer(script) as server, client_of(server) as client:
        await client.wait_connected(5)
        for params in ({"x": 1}, {}, None):
            await client.call("m", params)
    ids = [request.pop("id") for request in seen]
    assert seen == [
        {"jsonrpc": "2.0", "method": "m", "params": {"x": 1}},
        {"jsonrpc": "2.0", "method": "m"},
        {"jsonrpc": "2.0", "method": "m"},
    ]
    assert ids == sorted(set(ids))


async def test_calls_of_one_turn_travel_together_and_answers_may_be_in_any_order() -> None:
    peers: list[Peer] = []

    async def script(peer: Peer) -> None:
        peers.append(peer)
        requests = [await peer.request() for _ in range(200)]
        await peer.send(b"\n".join(answer(r, r["params"]["n"]) for r in reversed(requests)), piece=4096)

    async with ScriptedServer(script) as server, client_of(server) as client:
        await client.wait_connected(5)
        results = await asyncio.gather(*(client.call("m", {"n": n}) for n in range(200)))
        assert results == list(range(200))
        assert peers[0].reads[0] == 200


async def test_answers_split_at_every_byte() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.answer(await peer.request(), {"s": 'ü🙂"}{\\'}, piece=1)

    async with ScriptedServer(script) as server, client_of(server) as client:
        await client.wait_connected(5)
        for _ in range(3):
            assert await client.call("m") == {"s": 'ü🙂"}{\\'}


async def test_large_answer() -> None:
    result = [{"name": f"bdev-{n}", "aliases": ["ü" * 10], "n": n} for n in range(45_000)]

    async def script(peer: Peer) -> None:
        request = await peer.request()
        assert len(answer(request, result)) > 3_000_000
        await peer.answer(request, result)
        await echo(peer)

    async with ScriptedServer(script) as server, client_of(server) as client:
        await client.wait_connected(5)
        large, small = await asyncio.gather(client.call("large"), client.call("m", {"n": 1}))
        assert large == result
        assert small == {"n": 1}


async def test_error_answers_keep_code_message_method_and_params() -> None:
    async def script(peer: Peer) -> None:
        await peer.send(error(await peer.request(), -17, "File exists"))
        await peer.send(error(await peer.request(), -32601, "Method not found"))

    params = {"name": "d0", "deep": {"list": [1]}}
    before = copy.deepcopy(params)
    async with ScriptedServer(script) as server, client_of(server) as client:
        await client.wait_connected(5)
        with pytest.raises(RpcError) as caught:
            await client.call("bdev_aio_create", params)
        failure = caught.value
        assert (failure.method, failure.code, failure.message) == ("bdev_aio_create", -17, "File exists")
        assert failure.params == before
        assert params == before
        with pytest.raises(RpcError) as caught:
            await client.call("nope")
        assert (caught.value.code, caught.value.params) == (-32601, {})


async def test_late_answers_go_to_nobody() -> None:
    """A call that timed out and one that was cancelled are answered later: the next calls get their own answers."""

    async def script(peer: Peer) -> None:
        slow, cancelled = await peer.request(), await peer.request()
        prompt = await peer.request()
        await peer.send(answer(slow, "late 1") + answer(prompt, "mine") + error(cancelled, -1, "late 2"))
        await echo(peer)

    async with ScriptedServer(script) as server, client_of(server) as client:
        await client.wait_connected(5)
        slow = asyncio.create_task(client.call("slow", timeout_s=0.02))
        cancelled = asyncio.create_task(client.call("cancelled"))
        with pytest.raises(DeadlineExceeded, match=r"slow: no answer within 0\.02 s"):
            await slow
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await client.call("prompt") == "mine"
        assert await client.call("m", {"n": 7}) == {"n": 7}
        assert client.generation == 1


async def test_a_target_that_stops_answering_costs_each_call_its_own_deadline() -> None:
    async def silent(peer: Peer) -> None:
        await peer.closed()

    async with ScriptedServer(silent) as server, client_of(server, call_timeout_s=0.05) as client:
        await client.wait_connected(5)
        outcomes = await asyncio.gather(
            client.call("a"), client.call("b", timeout_s=0.01), client.call("c", timeout_s=0), return_exceptions=True
        )
        assert [type(o) for o in outcomes] == [DeadlineExceeded] * 3
        assert client.connected


GARBAGE = {
    "text": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "array": b"[1]",
    "broken JSON": b'{"jsonrpc":"2.0","id":1,,}',
    "no id": b'{"jsonrpc":"2.0","result":true}',
    "null id": b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}',
    "unknown id": b'{"jsonrpc":"2.0","id":999999,"result":true}',
    "invalid UTF-8": b'{"jsonrpc":"2.0","id":1,"result":"\xff"}',
    "bottomless": b'{"jsonrpc":"2.0","id":1,"result":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "wrong types": b'{"jsonrpc":"2.0","id":"1","result":true}',
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_ends_the_connection_for_all_and_the_next_one_works(kind: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.request()
        await peer.send(GARBAGE[kind])
        await peer.closed()

    async with ScriptedServer(script, echo) as server, client_of(server) as client:
        await client.wait_connected(5)
        outcomes = await asyncio.gather(client.call("a"), client.call("b"), return_exceptions=True)
        assert [type(o) for o in outcomes] == [TransportClosed, TransportClosed]
        assert "not a JSON-RPC answer" in str(outcomes[0])
        await client.wait_connected(5)
        assert await client.call("m", {"n": 1}) == {"n": 1}
        assert client.generation == 2


async def test_closed_in_the_middle_of_an_answer() -> None:
    async def script(peer: Peer) -> None:
        request = await peer.request()
        await peer.send(answer(request, "x" * 1000)[:500])

    async with ScriptedServer(script, echo) as server, client_of(server) as client:
        changes: list[bool] = []
        client.on_change(changes.append)
        await client.wait_connected(5)
        with pytest.raises(TransportClosed, match="500 bytes of an unfinished answer"):
            await client.call("m")
        await client.wait_connected(5)
        assert await client.call("m") is None  # the rest of the cut answer does not leak into the new connection
        await eventually(lambda: changes == [True, False, True])


async def test_a_peer_that_hangs_up_at_once_is_not_hammered() -> None:
    async def hang_up(peer: Peer) -> None:
        return

    async with ScriptedServer(hang_up) as server:
        client = Client(server.path, reconnect_min_s=0.01, reconnect_max_s=10.0)
        async with client:
            await eventually(lambda: server.connections >= 3)
            started = time.monotonic()
            await eventually(lambda: server.connections >= 5)
            assert time.monotonic() - started > 0.06  # the 4th and 5th waited at least half of 0.08 and 0.16 s


async def test_restart_of_the_target() -> None:
    async with ScriptedServer(echo) as server, client_of(server) as client:
        await client.wait_connected(5)
        waiting = asyncio.create_task(client.call("m"))
        await waiting
        await server.stop()
        await eventually(lambda: not client.connected)
        assert client.peer_pid is None
        started = time.monotonic()
        with pytest.raises(TransportClosed, match=r"does not exist|nobody listens|just lost"):
            await client.call("m")
        assert time.monotonic() - started < 1
        await server.restart()
        await client.wait_connected(5)
        assert client.generation == 2
        assert await client.call("m", {"again": True}) == {"again": True}


async def test_unsubscribed_listener_hears_nothing() -> None:
    async with ScriptedServer(echo) as server, client_of(server) as client:
        heard: list[bool] = []
        all_of_it: list[bool] = []
        unsubscribe = client.on_change(heard.append)
        client.on_change(all_of_it.append)
        await eventually(lambda: all_of_it == [True])
        unsubscribe()
        unsubscribe()
        await server.stop()
        await eventually(lambda: all_of_it == [True, False])
        assert heard == [True]


async def test_no_socket_names_path_and_cause(tmp_path: Path) -> None:
    async with Client(tmp_path / "none.sock", reconnect_min_s=0.005) as client:
        with pytest.raises(Unavailable, match=r"none\.sock.*does not exist; is the target running"):
            await client.wait_connected(0.05)
        with pytest.raises(TransportClosed, match="does not exist"):
            await client.call("m")


async def test_dead_socket_names_the_cause() -> None:
    async with ScriptedServer(echo) as server:
        link = server.directory / "dead.sock"
        os.link(server.path, link)  # a second name that outlives the listener
        await server.stop()
        async with Client(link, reconnect_min_s=0.005) as client:
            with pytest.raises(Unavailable, match="nobody listens"):
                await client.wait_connected(0.05)


def test_socket_path_too_long() -> None:
    with pytest.raises(InvalidArgument, match="too long"):
        Client(Path("/tmp") / ("x" * 120))


async def test_close_ends_waiting_calls_and_stays_closed() -> None:
    async def silent(peer: Peer) -> None:
        await peer.closed()

    async with ScriptedServer(silent) as server:
        client = client_of(server)
        await client.start()
        await client.wait_connected(5)
        call = asyncio.create_task(client.call("m"))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(TransportClosed, match="closed"):
            await call
        await client.close()
        with pytest.raises(TransportClosed):
            await client.call("m")
        with pytest.raises(TransportClosed):
            await client.start()


@pytest.mark.parametrize(
    "params",
    [{"a": object()}, {"a": "\ud800"}, {"a": "x" * MAX_REQUEST_BYTES}],
    ids=["no JSON type", "lone surrogate", "too long"],
)
async def test_what_cannot_be_sent_is_refused_and_disturbs_nobody(params: dict[str, Any]) -> None:
    async with ScriptedServer(echo) as server, client_of(server) as client:
        await client.wait_connected(5)
        good, bad = await asyncio.gather(client.call("m", {"n": 1}), client.call("m", params), return_exceptions=True)
        assert good == {"n": 1}
        assert isinstance(bad, InvalidArgument)
        assert client.generation == 1


async def test_thousand_callers_with_random_cancellations() -> None:
    """Every caller gets its own answer or its own failure, never somebody else's."""

    async def script(peer: Peer) -> None:
        held: list[dict[str, Any]] = []
        while True:
            held.append(await peer.request())
            if len(held) >= 7:
                held.reverse()
                await peer.send(b"".join(answer(r, r["params"]["n"]) for r in held))
                held.clear()

    async def caller(client: Client, n: int) -> None:
        if n % 5 == 0:
            with pytest.raises((TimeoutError, DeadlineExceeded)):
                async with asyncio.timeout(0):
                    await client.call("m", {"n": n})
        else:
            assert await client.call("m", {"n": n}) == n

    async with ScriptedServer(script) as server, client_of(server) as client:
        await client.wait_connected(5)
        filler = [asyncio.create_task(client.call("m", {"n": -1})) for _ in range(7)]
        await asyncio.gather(*(caller(client, n) for n in range(1001)))
        for task in filler:
            task.cancel()
        await asyncio.gather(*filler, return_exceptions=True)
        assert client.calls == {"m": 1008}
