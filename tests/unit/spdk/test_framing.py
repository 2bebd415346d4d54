"""Finding the end of JSON messages in a stream, whatever the pieces it arrives in."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.spdk.framing import FramingError, MessageSplitter

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
json_objects = st.dictionaries(st.text(max_size=8), json_values, max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    objects=st.lists(json_objects, max_size=5),
    spaces=st.lists(st.sampled_from(["", "\n", " \r\n\t"]), min_size=6, max_size=6),
    ascii_only=st.booleans(),
    pretty=st.booleans(),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
)
def test_any_objects_come_back_however_they_are_cut(
    objects: list[dict[str, Any]], spaces: list[str], ascii_only: bool, pretty: bool, cuts: list[int]
) -> None:
    texts = [json.dumps(o, ensure_ascii=ascii_only, indent=2 if pretty else None) for o in objects]
    stream = (spaces[0] + "".join(text + space for text, space in zip(texts, spaces[1:], strict=False))).encode(
        "utf-8", "surrogatepass"
    )
    splitter = MessageSplitter()
    found: list[bytes] = []
    position = turn = 0
    while position < len(stream):
        cut = cuts[turn % len(cuts)]
        found += splitter.feed(stream[position : position + cut])
        position += cut
        turn += 1
    assert [json.loads(message.decode("utf-8", "surrogatepass")) for message in found] == objects
    assert splitter.pending_bytes == 0


@pytest.mark.parametrize("piece", [1, 2, 3, 7])
def test_braces_quotes_and_backslashes_inside_strings(piece: int) -> None:
    value = {'}"{': '\\"}{"\\\\', "ü🙂": ["}}}", {"": '"'}], "end\\": "\\"}
    stream = json.dumps(value, ensure_ascii=False).encode() * 3
    splitter = MessageSplitter()
    found = [m for at in range(0, len(stream), piece) for m in splitter.feed(stream[at : at + piece])]
    assert [json.loads(m) for m in found] == [value] * 3


@pytest.mark.parametrize("garbage", [b"hello", b"[1]", b"}", b'"text"', b"\x00", b"{} x", b"\xff\xfe{"])
def test_what_is_no_object_is_refused(garbage: bytes) -> None:
    with pytest.raises(FramingError):
        MessageSplitter().feed(garbage)


def test_a_message_without_end_is_refused() -> None:
    splitter = MessageSplitter(max_message_bytes=1000)
    with pytest.raises(FramingError, match="longer than 1000 bytes"):
        for _ in range(100):
            splitter.feed(b'{"a": "' + b"x" * 100)


@pytest.mark.parametrize("kind", ["one long string", "many small objects", "deep"])
def test_cost_grows_with_the_size_only(kind: str) -> None:
    """Twice the bytes cost less than four times the time, in pieces as a socket gives them."""

    def stream(scale: int) -> bytes:
        if kind == "one long string":
            return b'{"h":"' + b"A" * (1_500_000 * scale) + b'"}'
        if kind == "deep":
            return b'{"a":' * (150_000 * scale) + b"{}" + b"}" * (150_000 * scale)
        return json.dumps({"result": [{"name": f"bdev {n}", "n": n} for n in range(25_000 * scale)]}).encode()

    def cost(data: bytes) -> float:
        best = float("inf")
        for _ in range(3):
            splitter = MessageSplitter()
            started = time.process_time()
            found = [m for at in range(0, len(data), 16384) for m in splitter.feed(data[at : at + 16384])]
            best = min(best, time.process_time() - started)
            assert found == [data]
        return best

    assert cost(stream(2)) < 4 * cost(stream(1)) + 0.002
