"""Durable notes: complete or not at all, and keys that are no file names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.host.journal import Journal


async def test_written_read_listed_removed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a" / "b")
    assert journal.keys() == []
    assert journal.read("one") is None
    await journal.write("one", {"x": "1"})
    await journal.write("one", {"x": "2"})
    assert Journal(tmp_path / "a" / "b").read("one") == {"x": "2"}
    assert journal.keys() == ["one"]
    await journal.remove("one")
    await journal.remove("one")
    assert journal.keys() == []


@pytest.mark.parametrize("key", ["", ".", "..", "../x", "a/b", "x" * 129, "x" * 10_000, "a\0b", "ä", ".hidden"])
async def test_a_key_that_is_no_name_is_absent(tmp_path: Path, key: str) -> None:
    journal = Journal(tmp_path)
    assert journal.read(key) is None
    await journal.remove(key)
    with pytest.raises(ValueError, match="file name"):
        await journal.write(key, {})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_damaged_note_is_absent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "one.json").write_bytes(content)
    assert Journal(tmp_path).read("one") is None


async def test_cancelled_is_done_all_the_same(tmp_path: Path) -> None:
    """Whatever was under way has ended when the caller goes on, so nothing old lands on top of something newer."""
    journal = Journal(tmp_path)
    for turn in range(50):
        task = asyncio.create_task(journal.write("one", {"x": "old"}))
        for _ in range(turn % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await journal.remove("one")
        assert journal.keys() == []


async def test_a_draft_left_by_a_crash_is_no_note_and_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / ".one.new").write_text('{"x": "1"}')
    journal = Journal(tmp_path)
    assert journal.read("one") is None
    assert journal.keys() == ["one"]
    await journal.write("one", {"x": "2"})
    assert journal.read("one") == {"x": "2"}
    (tmp_path / ".two.new").touch()
    await journal.remove("one")
    await journal.remove("two")
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - a test may block its loop
