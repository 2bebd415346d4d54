"""The SQLite store as a file: several processes, kill -9, schema versions, and a file that cannot be used."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import FailedPrecondition, Unavailable
from agent.model import Disk, Meta, Tier, Volume, VolumeSpec
from agent.store import database
from agent.store.interface import EventType
from agent.store.local import open_local

HERE = Path(__file__).parent
Starter = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "quarry.db"


@pytest.fixture
def start(path: Path) -> Iterator[Starter]:
    """Starts worker.py on the database; whatever still runs at the end is killed."""
    children: list[subprocess.Popen[bytes]] = []

    def starter(*arguments: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, str(HERE / "worker.py"), str(path), *arguments]
        children.append(subprocess.Popen(argv, stdout=subprocess.PIPE))
        return children[-1]

    yield starter
    for child in children:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


# --- processes -------------------------------------------------------------------------------------------------


async def test_two_stores_of_one_process_see_what_another_writes(path: Path, start: Starter) -> None:
    """Closing any descriptor of a file lets go of all locks that the process has on it, those of SQLite too."""
    first = await open_local(path)
    await first.create(Disk(Meta("before")))
    second = await open_local(path)
    await second.list(Disk)
    for number in range(3):
        assert await asyncio.to_thread(start("once", f"other{number}").wait) == 0
        await first.create(Disk(Meta(f"mine{number}")))
        for store in (first, second):
            found = {each.meta.name for each in await store.list(Disk)}
            assert {f"other{number}", f"mine{number}"} <= found
    await second.close()
    await first.close()


async def test_two_processes_hammer_one_database(path: Path, start: Starter) -> None:
    store = await open_local(path)
    await store.create(Disk(Meta("shared")))
    watch = store.watch(Disk)
    children = [start("hammer", name) for name in ("a", "b")]
    seen: list[int] = []
    size = 0
    while size < 2 * 8 * 25:
        event = await asyncio.wait_for(anext(watch), 30)
        assert event.type is not EventType.RELIST
        assert event.version > (seen[-1] if seen else 0)
        seen.append(event.version)
        if event.resource is not None and event.resource.meta.name == "shared":
            assert event.resource.status.size_bytes == size + 1
            size += 1
    for child in children:
        assert (await asyncio.to_thread(child.communicate, timeout=30))[0] == b"done\n"
    assert [disk.status.size_bytes for disk in await store.list(Disk)] == [400]
    await store.close()


async def test_kill_9_loses_nothing_acknowledged(path: Path, start: Starter) -> None:
    chance = random.Random(7)
    acknowledged: dict[str, tuple[int, int]] = {}
    for life in range(6):
        child = start("endless", f"life{life}")
        lines = 16 + chance.randrange(400)
        assert child.stdout is not None
        said = [await asyncio.to_thread(child.stdout.readline) for _ in range(lines)]
        child.kill()
        said += (await asyncio.to_thread(child.communicate))[0].splitlines(keepends=True)
        for line in said:
            if line.endswith(b"\n"):
                name, version, size = line.decode().split()
                acknowledged[name] = (int(version), int(size))
        store = await open_local(path)
        found = {disk.meta.name: disk for disk in await store.list(Disk)}
        for name, (version, size) in acknowledged.items():
            assert found[name].meta.version >= version
            assert found[name].status.size_bytes >= size
        await store.create(Disk(Meta(f"after{life}")))
        await store.close()
    assert len(acknowledged) >= 16 * 5


async def test_a_write_waits_for_a_foreign_transaction_reads_do_not(path: Path) -> None:
    store = await open_local(path)
    await store.create(Disk(Meta("a")))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    write = asyncio.ensure_future(store.create(Disk(Meta("b"))))
    await asyncio.sleep(0.1)
    assert not write.done()
    assert await store.get(Disk, "a") is not None
    other.execute("ROLLBACK")
    other.close()
    await asyncio.wait_for(write, 5)
    await store.close()


# --- schema versions -------------------------------------------------------------------------------------------


@pytest.fixture
def version_1(path: Path) -> Path:
    """A database as version 1 of the schema wrote it."""
    connection = sqlite3.connect(path)
    connection.executescript((HERE / "version_1.sql").read_text())
    connection.close()
    return path


async def test_a_version_1_database_opens_with_its_content(version_1: Path) -> None:
    store = await open_local(version_1)
    volume = await store.get(Volume, "vol-1")
    assert volume == Volume(
        Meta("vol-1", version=3, created_at=1.5), VolumeSpec(csi_name="pvc-ü", size_bytes=1 << 30, tier=Tier.SSD)
    )
    assert [disk.meta.name for disk in await store.list(Disk)] == ["d0"]
    assert (await store.update(volume)).meta.version == 5
    events = store.watch(Volume, since=2)
    assert [(await anext(events)).version for _ in range(2)] == [3, 5]
    await store.close()


def _rename_disk(connection: sqlite3.Connection) -> None:
    connection.execute("UPDATE resources SET name = 'disk-0' WHERE kind = 'Disk'")
    connection.execute(
        "UPDATE resources SET document = CAST(json_set(CAST(document AS TEXT), '$.meta.name', 'disk-0') AS BLOB)"
        " WHERE kind = 'Disk'"
    )


async def test_a_migration_keeps_versions_growing_and_stops_a_running_older_program(version_1: Path) -> None:
    older = await open_local(version_1)
    watch = older.watch(Disk)
    database.prepare(version_1, [*database.MIGRATIONS, _rename_disk])
    with pytest.raises(FailedPrecondition, match="schema version 2"):
        await older.get(Disk, "d0")
    with pytest.raises(FailedPrecondition, match="schema version 2"):
        await older.create(Disk(Meta("x")))
    await older.close()
    assert [event async for event in watch] == []
    with pytest.raises(FailedPrecondition, match="newer version") as caught:
        await open_local(version_1)
    assert str(version_1) in str(caught.value)
    connection = sqlite3.connect(version_1)
    assert connection.execute("SELECT name FROM resources ORDER BY kind").fetchall() == [("disk-0",), ("vol-1",)]
    assert connection.execute("SELECT version FROM changes").fetchall() == [(5,)]
    connection.close()


def _fails(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM resources")
    raise sqlite3.OperationalError("no")


async def test_a_failed_migration_changes_nothing(version_1: Path) -> None:
    with pytest.raises(Unavailable):
        database.prepare(version_1, [*database.MIGRATIONS, _rename_disk, _fails])
    store = await open_local(version_1)
    assert [disk.meta.name for disk in await store.list(Disk)] == ["d0"]
    await store.close()


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("document", b'{"meta":{"name":"d0","colour":1}}', "meta.colour"),
        ("document", b'{"meta":7}', "not understood"),
        ("document", b"\xff\x00", "not understood"),
        ("kind", "Unicorn", "Unicorn"),
    ],
)
async def test_documents_of_a_newer_program_are_refused_and_kept(
    version_1: Path, column: str, value: bytes | str, says: str
) -> None:
    connection = sqlite3.connect(version_1)
    connection.execute(f"UPDATE resources SET {column} = ? WHERE kind = 'Disk'", (value,))
    connection.commit()
    before = connection.execute("SELECT * FROM resources").fetchall()
    with pytest.raises(FailedPrecondition, match=says):
        await open_local(version_1)
    assert connection.execute("SELECT * FROM resources").fetchall() == before
    connection.close()


# --- a file that cannot be used --------------------------------------------------------------------------------


def _not_a_database(path: Path) -> None:
    path.write_bytes(b"nothing like a database" * 1000)


def _foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.commit()
    connection.close()


def _folder(path: Path) -> None:
    path.mkdir()


def _damaged(path: Path) -> None:
    asyncio.run(_filled(path))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(1).randbytes(20 * 4096))


async def _filled(path: Path) -> None:
    store = await open_local(path)
    for start in range(0, 500, 100):
        await asyncio.gather(*(store.create(Disk(Meta(f"d{start + i}"))) for i in range(100)))
    await store.close()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_not_a_database, FailedPrecondition),
        (_foreign, FailedPrecondition),
        (_folder, Unavailable),
        (_damaged, Unavailable),
    ],
)
def test_unusable_files_are_named_and_left_alone(
    path: Path, spoil: Callable[[Path], None], error: type[Exception]
) -> None:
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(error, match=str(path)):
        asyncio.run(open_local(path))
    assert (path.read_bytes() if path.is_file() else b"") == before


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=str(tmp_path / "file" / "quarry.db")):
        await open_local(tmp_path / "file" / "quarry.db")


def test_a_full_disk_is_said_and_survived(path: Path, start: Starter) -> None:
    lines = start("full").communicate(timeout=30)[0].decode().splitlines()
    assert lines[0].startswith("refused ")
    assert str(path) in lines[0]
    written, readable, after = (int(number) for number in lines[1].split()[1:])
    assert 0 < written == readable
    assert after == written + 1


def _take_away(path: Path, replaced: bool) -> None:
    path.rename(path.with_suffix(".moved"))
    if replaced:
        path.touch()


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_taken_away_is_noticed_before_anything_is_lost(path: Path, replaced: bool) -> None:
    store = await open_local(path)
    await store.create(Disk(Meta("a")))
    _take_away(path, replaced)
    with pytest.raises(Unavailable, match=str(path)):
        await store.create(Disk(Meta("b")))
    os.replace(path.with_suffix(".moved"), path)  # noqa: PTH105 - the pathlib form would be flagged in a coroutine
    await store.create(Disk(Meta("b")))
    await store.close()


async def test_the_file_is_private(path: Path) -> None:
    store = await open_local(path)
    await store.create(Disk(Meta("a")))
    files = _files(path)
    assert len(files) >= 3
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    await store.close()


def _files(path: Path) -> Sequence[Path]:
    return list(path.parent.glob(f"{path.name}*"))


async def test_the_change_log_stays_bounded(path: Path) -> None:
    store = await open_local(path)
    disk = await store.create(Disk(Meta("a")))
    for _ in range(20):
        await asyncio.gather(*(store.create(Disk(Meta(f"d{i}"))) for i in range(256)))
        await asyncio.gather(*(store.delete(Disk, f"d{i}") for i in range(256)))
    await store.update(replace(disk))
    await store.close()
    connection = sqlite3.connect(path)
    (rows,) = connection.execute("SELECT count(*) FROM changes").fetchone()
    connection.close()
    assert rows <= 4096 + 2 * 256
