"""The metadata journal: what a death at any byte leaves, what damage is refused."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from agent.embedded.lvs.journal import Journal, JournalBusy, JournalDamaged
from agent.embedded.lvs.store import COMPACT_SLACK

from .conftest import MIB, Machine


def written(path: Path, count: int) -> list[int]:
    """A journal of `count` records; returns where each ends."""
    journal = Journal.create(path, {"n": 0})
    ends = [journal.size]
    for number in range(1, count):
        journal.append({"n": number, "text": "x" * number})
        ends.append(journal.size)
    journal.close()
    return ends


def reopened(path: Path) -> list[dict[str, Any]]:
    journal, records = Journal.open(path)
    journal.close()
    return records


def test_cut_at_any_byte_the_records_before_remain_and_it_can_go_on(tmp_path: Path) -> None:
    ends = written(tmp_path / "full", 6)
    content = (tmp_path / "full").read_bytes()
    for length in range(ends[0], len(content) + 1):
        path = tmp_path / "cut"
        path.write_bytes(content[:length])
        journal, records = Journal.open(path)
        assert [record["n"] for record in records] == list(range(sum(end <= length for end in ends)))
        journal.append({"n": "next"})
        journal.close()
        assert reopened(path)[-1] == {"n": "next"}


def test_a_spoiled_last_record_is_dropped_and_an_earlier_one_refused(tmp_path: Path) -> None:
    ends = written(tmp_path / "full", 4)
    content = (tmp_path / "full").read_bytes()
    for position in range(len(content) - 1):
        spoiled = bytearray(content)
        spoiled[position] ^= 1
        path = tmp_path / "spoiled"
        path.write_bytes(spoiled)
        if position >= ends[-2]:
            assert len(reopened(path)) == 3
        else:
            with pytest.raises(JournalDamaged):
                Journal.open(path)
            assert path.read_bytes() == spoiled, "left for somebody to look at"


def test_two_targets_cannot_have_one_journal(tmp_path: Path) -> None:
    written(tmp_path / "journal", 2)
    journal, _ = Journal.open(tmp_path / "journal")
    with pytest.raises(JournalBusy):
        Journal.open(tmp_path / "journal")
    journal.close()
    assert len(reopened(tmp_path / "journal")) == 2


async def test_rewriting_keeps_later_records_and_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal.create(path, {"n": 0})
    for number in range(50):
        journal.append({"n": number})
    waiting = [asyncio.create_task(journal.commit()) for _ in range(20)]
    await journal.rewrite(lambda: [{"state": 1}])
    journal.append({"n": "after"})
    await journal.commit()
    await asyncio.gather(*waiting)
    with pytest.raises(JournalBusy):
        Journal.open(path)
    await journal.settle()
    journal.close()
    assert reopened(path) == [{"state": 1}, {"n": "after"}]


async def test_a_damaged_store_is_not_loaded_and_nothing_of_it_is_removed(machine: Machine) -> None:
    await machine.pool()
    for name in ("a", "b", "c"):
        await machine.call("bdev_lvol_create", lvol_name=name, size_in_mib=1, lvs_name="pool", thin_provision=True)
    await machine.stores.close()
    (path,) = machine.directory.glob("pool.img.lvs/*/journal")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    machine.start()
    await machine.reopen()
    assert await machine.call("bdev_lvol_get_lvstores") == []
    assert len(list(path.parent.glob("*.data"))) == 3
    assert path.read_bytes() == content


async def test_leftovers_of_interrupted_operations_are_collected(machine: Machine) -> None:
    """A death after a file was made and before its record, or after a record and before the file was removed."""
    await machine.pool()
    await machine.call("bdev_lvol_create", lvol_name="v", size_in_mib=2, lvs_name="pool", thin_provision=True)
    await machine.stores.close()
    (directory,) = machine.directory.glob("pool.img.lvs/*")
    (data,) = directory.glob("*.data")
    (directory / "00000000-0000-0000-0000-000000000000.data").write_bytes(b"half a snapshot")
    (directory / "journal.new").write_bytes(b"half a journal")
    with data.open("r+b") as file:
        file.truncate(5 * MIB)  # a resize that was not recorded
    machine.start()
    await machine.reopen()
    assert sorted(path.name for path in directory.iterdir()) == sorted(["journal", data.name])
    assert data.stat().st_size == 2 * MIB
    assert machine.bdev("pool/v").size_bytes == 2 * MIB


async def test_a_disk_without_its_metadata_is_left_alone(machine: Machine) -> None:
    await machine.pool()
    await machine.stores.close()
    shutil.rmtree(machine.directory / "pool.img.lvs")
    machine.start()
    await machine.reopen()
    assert await machine.call("bdev_lvol_get_lvstores") == []


async def test_the_journal_does_not_grow_without_end(machine: Machine) -> None:
    await machine.pool()
    await machine.call("bdev_lvol_create", lvol_name="v", size_in_mib=1, lvs_name="pool", thin_provision=True)
    (path,) = machine.directory.glob("pool.img.lvs/*/journal")
    largest = 0
    for number in range(3 * COMPACT_SLACK):
        bdev = machine.bdev("pool/v")
        await (bdev.write(0, bytes(4096)) if number % 2 else bdev.unmap(0, MIB))
        if number % 100 == 0:
            await bdev.flush()
            largest = max(largest, path.stat().st_size)
    assert largest < 2 * COMPACT_SLACK * 100
    before = await machine.lvols()
    await machine.restart()
    await machine.reopen()
    assert await machine.lvols() == before
