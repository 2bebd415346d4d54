"""Work that takes longer than its caller waits is done once, goes on without the caller, and tells how far it is."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import pytest

from agent.errors import Busy, FailedPrecondition, NotFound, QuarryError
from agent.model import Volume
from agent.volumes.attach.node import NodeVolumes
from agent.volumes.rules.modes import Block, Filesystem

from .conftest import MIB, SIZES, Machine, Programs, have, until_done

pytestmark = pytest.mark.root
EXT4 = Filesystem()
GATED = """\
echo started >> {gate}/started
{before}
while [ ! -e {gate}/open ]; do sleep 0.05; done
{then}
"""


class Gate:
    """Programs that wait until it is opened."""

    def __init__(self, folder: Path, programs: Programs) -> None:
        self._folder = folder
        self._programs = programs
        folder.mkdir()

    def before(self, name: str, before: str = "", then: str = 'exec "$real" "$@"') -> None:
        self._programs(name, GATED.format(gate=self._folder, before=before, then=then))

    @property
    def started(self) -> int:
        file = self._folder / "started"
        return file.read_text().count("started") if file.exists() else 0

    async def reached(self) -> None:
        async with asyncio.timeout(30):
            while not self.started:  # noqa: ASYNC110 - another process starts it
                await asyncio.sleep(0.01)

    def open(self) -> None:
        (self._folder / "open").touch()


@pytest.fixture
def gate(machine: Machine, programs: Programs) -> Gate:
    return Gate(machine.home / "gate", programs)


def commands() -> list[bytes]:
    """The command lines of all processes."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(file.read_bytes())
    return found


async def given_up(node: NodeVolumes, volume: Volume, staging: Path, gate: Gate, mode: Filesystem = EXT4) -> None:
    """Stage by a caller that leaves once the program has been started."""
    call = asyncio.create_task(node.stage(volume, staging, mode))
    await gate.reached()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize("fs_type", SIZES)
async def test_formatting_goes_on_without_its_caller(machine: Machine, gate: Gate, fs_type: str) -> None:
    if reason := have(f"mkfs.{fs_type}"):
        pytest.skip(reason)
    volume, staging = machine.volume("v", SIZES[fs_type]), machine.path("staging")
    node, mode = machine.node(), Filesystem(fs_type)
    gate.before(f"mkfs.{fs_type}")
    await given_up(node, volume, staging, gate, mode)
    with pytest.raises(Busy, match=f"is being formatted with {fs_type} for [0-9]+ s; it goes on"):
        await node.stage(volume, staging, mode)
    stats = await node.stats(volume, staging)
    assert "cannot be used yet: it is being formatted" in stats.problem
    assert stats.total_bytes == SIZES[fs_type]
    with pytest.raises(NotFound):
        await node.stats(volume, machine.path("elsewhere"))
    gate.open()
    await until_done(lambda: node.stage(volume, staging, mode))
    assert gate.started == 1
    assert machine.mounted() == [str(staging)]
    assert (await node.stats(volume, staging)).problem == ""


async def test_a_check_goes_on_and_tells_how_far_it_is(machine: Machine, gate: Gate) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    await node.stage(volume, staging, EXT4)
    await node.unstage(volume.meta.name, volume, staging)
    gate.before("e2fsck", before="echo 1 50 200 /dev/loop0")
    await given_up(node, volume, staging, gate)
    with pytest.raises(Busy, match=r"having its ext4 checked for [0-9]+ s \(pass 1 of 5, 25 %\)"):
        await node.stage(volume, staging, EXT4)
    for other in (Filesystem("ext4", ("noatime",)), Block()):
        with pytest.raises(Busy, match="checked"):
            await node.stage(volume, staging, other)
    with pytest.raises(Busy, match="checked"):
        await node.publish(volume, staging, machine.mounts / "target", EXT4, readonly=False)
    assert "25 %" in (await node.stats(volume, staging)).problem
    gate.open()
    await until_done(lambda: node.stage(volume, staging, EXT4))
    assert gate.started == 1


async def test_what_was_found_after_the_caller_had_left_is_told_to_the_next(machine: Machine, gate: Gate) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    await node.stage(volume, staging, EXT4)
    await node.unstage(volume.meta.name, volume, staging)
    gate.before("e2fsck", then="echo unexpected inconsistency; exit 4")
    await given_up(node, volume, staging, gate)
    gate.open()
    with pytest.raises(FailedPrecondition, match=r"by hand .* unexpected inconsistency"):
        await until_done(lambda: node.stage(volume, staging, EXT4))
    assert gate.started == 1
    assert machine.loops() == machine.mounted() == []


async def test_a_drained_node_waits_for_it_and_a_deleted_volume_ends_it(machine: Machine, gate: Gate) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    gate.before("mkfs.ext4")
    await given_up(node, volume, staging, gate)
    with pytest.raises(Busy, match="being formatted"):
        await node.unstage(volume.meta.name, volume, staging)
    assert len(machine.loops()) == 1
    await node.unstage(volume.meta.name, None, staging)  # its record is gone
    assert machine.loops() == machine.mounted() == []
    assert not any(str(machine.home / "bin").encode() in command for command in commands())
    gate.open()


async def test_work_dies_with_a_killed_agent_and_the_next_one_does_it(machine: Machine, gate: Gate) -> None:
    """In a Pod or a service nothing outlives the agent anyway; a second mkfs beside the first would."""
    gate.before("mkfs.ext4")
    script = (
        "import asyncio, pathlib, sys; sys.path.insert(0, sys.argv[2]); from conftest import Machine;"
        "from agent.volumes.attach.node import Filesystem; machine = Machine(pathlib.Path(sys.argv[1]));"
        "asyncio.run(machine.node().stage(machine.volume(), machine.path('staging'), Filesystem()))"
    )
    argv = [sys.executable, "-c", script, str(machine.home), str(Path(__file__).parent)]
    agent = await asyncio.create_subprocess_exec(*argv, cwd=Path(__file__).parents[3])
    await gate.reached()
    agent.send_signal(signal.SIGKILL)
    await agent.wait()
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    gate.open()
    await until_done(lambda: node.stage(volume, staging, EXT4))
    assert gate.started == 2
    assert machine.mounted() == [str(staging)]


async def test_growth_in_use_goes_on_without_its_caller(machine: Machine, gate: Gate) -> None:
    if reason := have("mkfs.xfs"):
        pytest.skip(reason)
    volume, staging = machine.volume("v", 320 * MIB), machine.path("staging")
    node, mode = machine.node(), Filesystem("xfs")
    await node.stage(volume, staging, mode)
    volume = machine.grown(volume, 400 * MIB)
    gate.before("xfs_growfs")
    call = asyncio.create_task(node.expand(volume, staging))
    await gate.reached()
    call.cancel()
    with pytest.raises(Busy, match="having its filesystem grown"):
        await node.expand(volume, staging)
    stats = await node.stats(volume, staging)
    assert (stats.problem, "filesystem grown" in stats.remark) == ("", True)
    gate.open()
    assert await until_done(lambda: node.expand(volume, staging)) == 400 * MIB
    assert (await node.stats(volume, staging)).total_bytes > 320 * MIB
    assert (await node.stats(volume, staging)).remark == ""


async def test_the_end_of_the_agent_ends_it(machine: Machine, gate: Gate) -> None:
    volume, staging, node = machine.volume(), machine.path("staging"), machine.node()
    gate.before("mkfs.ext4")
    await given_up(node, volume, staging, gate)
    await node.stop()
    gate.open()
    with pytest.raises(QuarryError):
        await node.publish(volume, staging, machine.mounts / "target", EXT4, readonly=False)
    assert machine.mounted() == []
    await machine.node().stage(volume, staging, EXT4)
