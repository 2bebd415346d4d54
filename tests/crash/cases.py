"""The operations of the crash matrix: what comes before each, its opposite, and what must be true after it.

A new operation is one `Case`; a new call is one function of a `Trial`. Calls may be repeated and so are idempotent.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from agent.csi.client import from_snapshot, from_volume
from agent.csi.pb import csi_pb2 as csi
from agent.nvmf import initiator
from agent.volumes.rules.names import group_id, snapshot_id, volume_id

from .machine import NODE
from .subject import TICK_S, again, ready
from .trial import Call, Case, Trial

MIB = 1 << 20
XFS_BYTES = 304 * MIB
"""mkfs.xfs takes no less than 300 MiB."""

PATTERN = b"quarry: what was written stays" + bytes(4066)


# --- Controller ----------------------------------------------------------------------------------------------------


async def create(trial: Trial) -> None:
    case = trial.case
    parameters = {"tier": "ssd", "frontend": case.frontend, "provisioning": case.provisioning}
    made = await trial.csi.create_volume(trial.name, case.size_bytes, parameters, block=case.block)
    assert made == trial.volume


async def delete(trial: Trial) -> None:
    await trial.csi.delete_volume(trial.volume)


async def publish(trial: Trial) -> None:
    await trial.csi.publish(trial.volume, NODE, block=trial.case.block)


async def unpublish(trial: Trial) -> None:
    await trial.csi.unpublish(trial.volume, NODE)


async def expand(trial: Trial) -> None:
    trial.size_bytes = 2 * trial.case.size_bytes
    grown = await trial.csi.expand(trial.volume, trial.size_bytes)
    assert grown.capacity_bytes == trial.size_bytes


async def modify(trial: Trial) -> None:
    await trial.csi.modify(trial.volume, {"iops": "2000", "writeBandwidth": "100Mi"})


async def unlimit(trial: Trial) -> None:
    await trial.csi.modify(trial.volume, {"iops": "0", "writeBandwidth": "0"})


# --- Snapshots and copies --------------------------------------------------------------------------------------------


async def snapshot(trial: Trial) -> None:
    taken = await trial.csi.create_snapshot(trial.snapshot, trial.volume)
    assert taken.ready_to_use
    assert taken.snapshot_id == snapshot_id(trial.snapshot)


async def delete_snapshot(trial: Trial) -> None:
    await trial.csi.delete_snapshot(snapshot_id(trial.snapshot))


async def restore(trial: Trial) -> None:
    await _copy(trial, trial.copy, from_snapshot(snapshot_id(trial.snapshot)))


async def restore_larger(trial: Trial) -> None:
    await _copy(trial, trial.copy, from_snapshot(snapshot_id(trial.snapshot)), 2 * trial.case.size_bytes)


async def restore_other(trial: Trial) -> None:
    await _copy(trial, trial.other, from_snapshot(snapshot_id(trial.snapshot)))


async def clone(trial: Trial) -> None:
    await _copy(trial, trial.copy, from_volume(trial.volume))


async def _copy(trial: Trial, name: str, source: csi.VolumeContentSource, size_bytes: int = 0) -> None:
    case = trial.case
    parameters = {"tier": "ssd", "frontend": case.frontend}
    made = await trial.csi.create_volume(name, size_bytes or case.size_bytes, parameters, source=source)
    assert made == volume_id(name)


async def delete_copy(trial: Trial) -> None:
    await trial.csi.delete_volume(volume_id(trial.copy))


async def delete_other(trial: Trial) -> None:
    await trial.csi.delete_volume(volume_id(trial.other))


async def create_other(trial: Trial) -> None:
    parameters = {"tier": "ssd", "frontend": trial.case.frontend}
    await trial.csi.create_volume(trial.other, trial.case.size_bytes, parameters)


async def group(trial: Trial) -> None:
    taken = await trial.csi.create_group(trial.group, [trial.volume, volume_id(trial.other)])
    assert taken.ready_to_use
    assert len(taken.snapshots) == 2


async def delete_group(trial: Trial) -> None:
    await trial.csi.delete_group(group_id(trial.group), [])


async def restart_target(trial: Trial) -> None:
    """What the target knows only from doing it itself is forgotten."""
    trial.subject.target.kill()
    while await again(trial.csi.probe):  # noqa: ASYNC110 - it is another process
        await asyncio.sleep(TICK_S)
    trial.subject.target.start()
    await ready(trial.csi)


# --- Node ----------------------------------------------------------------------------------------------------------


async def stage(trial: Trial) -> None:
    trial.staging.mkdir(exist_ok=True)  # as kubelet does
    await trial.csi.stage(trial.volume, trial.staging, block=trial.case.block, fs_type=trial.case.fs_type)


async def unstage(trial: Trial) -> None:
    await trial.csi.unstage(trial.volume, trial.staging)
    if trial.staging.exists():
        trial.staging.rmdir()  # as kubelet does; fails when anything was left in it


async def node_publish(trial: Trial) -> None:
    case = trial.case
    await trial.csi.node_publish(trial.volume, trial.staging, trial.target, block=case.block, fs_type=case.fs_type)


async def node_publish_readonly(trial: Trial) -> None:
    await trial.csi.node_publish(trial.volume, trial.staging, trial.target, readonly=True, block=trial.case.block)


async def node_unpublish(trial: Trial) -> None:
    await trial.csi.node_unpublish(trial.volume, trial.target)


async def node_expand(trial: Trial) -> None:
    assert await trial.csi.node_expand(trial.volume, trial.staging) == trial.size_bytes


# --- Data ----------------------------------------------------------------------------------------------------------


async def write_file(trial: Trial) -> None:
    with (trial.staging / "file").open("wb") as file:
        file.write(PATTERN)
        os.fsync(file.fileno())


async def stage_and_read_file(trial: Trial) -> None:
    await again(stage, trial)
    assert (trial.staging / "file").read_bytes() == PATTERN


async def write_block(trial: Trial) -> None:
    """Over NVMe/TCP, as a host would; published while it lasts."""
    assert await _first_block(trial, PATTERN) == PATTERN


async def read_block(trial: Trial) -> None:
    assert await _first_block(trial) == PATTERN, "what was written is gone"


async def read_copy(trial: Trial) -> None:
    found = await _first_block(trial, volume=volume_id(trial.copy))
    await again(trial.csi.unpublish, volume_id(trial.copy), NODE)
    assert found == PATTERN, "the copy has not what its source had"


async def read_both(trial: Trial) -> None:
    await read_block(trial)
    await read_copy(trial)


async def read_blank(trial: Trial) -> None:
    assert await _first_block(trial) == bytes(len(PATTERN)), "a new volume shows what another one had"


async def overwrite_block(trial: Trial) -> None:
    await _first_block(trial, bytes(reversed(PATTERN)))


async def _first_block(trial: Trial, data: bytes = b"", volume: str = "") -> bytes:
    context = await again(trial.csi.publish, volume or trial.volume, NODE)
    address, port = context["address"], int(context["port"])
    options = initiator.Options(timeout_s=10)
    host = await initiator.connect(address, port, context["nqn"], context["hostNqn"], options)
    try:
        if data:
            await host.write(1, 0, data)
            await host.flush(1)
        return await host.read(1, 0, len(PATTERN))
    finally:
        await host.close()


COPIES = (delete_copy, delete_other, delete_snapshot, unpublish, delete)
WRITTEN = (create, write_block)
GROUPED = (*WRITTEN, create_other, group)
CLOSED = (unpublish, delete)
MOUNTED = (create, publish, stage, write_file)
UNMOUNT = (node_unpublish, unstage, unpublish, delete)


def node_case(name: str, before: tuple[Call, ...], call: Call, opposite: Call | None, **more: object) -> Case:
    size_bytes = XFS_BYTES if more.get("fs_type") == "xfs" else 32 * MIB
    more = {"after": UNMOUNT, "crosses": ("run",), "frontend": "loop", "size_bytes": size_bytes, **more}
    return Case(name, before, call, opposite, **more)  # type: ignore[arg-type]


CASES = (
    Case("create", (), create, delete, CLOSED, read_blank),
    Case("create thick", (), create, delete, CLOSED, read_blank, provisioning="thick"),
    Case("delete", (create,), delete, create, CLOSED),
    Case("delete a used one", (create, write_block, unpublish), delete, create, CLOSED),
    Case("publish", (create,), publish, unpublish, CLOSED, read_blank),
    Case("unpublish", (create, write_block), unpublish, publish, CLOSED, read_block),
    Case("publish again", (create, write_block, unpublish), publish, unpublish, CLOSED, read_block),
    Case("expand", (create,), expand, None, CLOSED),
    Case("expand in use", (create, write_block), expand, None, CLOSED, read_block),
    Case("modify", (create,), modify, unlimit, CLOSED, read_blank, crosses=("commit",)),
    Case("modify in use", (create, write_block), modify, unlimit, CLOSED, read_block),
    Case("modify after use", (create, write_block, modify, unpublish), unlimit, modify, CLOSED, read_block),
    Case("publish a limited volume", (create, modify), publish, None, CLOSED, read_blank),
    Case("snapshot", WRITTEN, snapshot, delete_snapshot, COPIES, read_block),
    Case("snapshot a closed volume", (*WRITTEN, unpublish), snapshot, delete_snapshot, COPIES, read_block),
    Case("delete a snapshot", (*WRITTEN, snapshot, overwrite_block), delete_snapshot, None, COPIES),
    Case("delete a restored snapshot", (*WRITTEN, snapshot, restore), delete_snapshot, None, COPIES, read_both),
    Case(
        "delete a snapshot of two",
        (*WRITTEN, snapshot, restore, restore_other),
        delete_snapshot,
        None,
        COPIES,
        read_both,
    ),
    Case("restore", (*WRITTEN, snapshot, overwrite_block), restore, delete_copy, COPIES, read_copy),
    Case("restore larger", (*WRITTEN, snapshot), restore_larger, delete_copy, COPIES, read_both),
    Case("restore after a restart", (*WRITTEN, snapshot, restart_target), restore, delete_copy, COPIES, read_both),
    Case("delete a restored volume", (*WRITTEN, snapshot, restore), delete_copy, restore, COPIES, read_block),
    Case("delete a volume with copies", (*WRITTEN, snapshot, restore, unpublish), delete, None, COPIES, read_copy),
    Case("clone", WRITTEN, clone, delete_copy, COPIES, read_both),
    Case("delete a clone", (*WRITTEN, clone), delete_copy, clone, COPIES, read_block),
    Case("delete a cloned volume", (*WRITTEN, clone, unpublish), delete, None, COPIES, read_copy),
    Case("expand a copy's source", (*WRITTEN, snapshot, restore), expand, None, COPIES, read_both),
    Case("group", GROUPED[:-1], group, delete_group, (delete_group, *COPIES), read_block),
    Case("delete a group", GROUPED, delete_group, group, (delete_group, *COPIES), read_block),
    node_case("snapshot in use", MOUNTED, snapshot, delete_snapshot, after=(delete_snapshot, *UNMOUNT)),
    node_case("stage", (create, publish), stage, unstage),
    node_case("stage xfs", (create, publish), stage, unstage, fs_type="xfs"),
    node_case("stage again", (*MOUNTED, unstage), stage, unstage, check=stage_and_read_file),
    node_case("unstage", MOUNTED, unstage, stage, check=stage_and_read_file),
    node_case("stage a block volume", (create, publish), stage, unstage, block=True),
    node_case("unstage a block volume", (create, publish, stage), unstage, stage, block=True),
    node_case("node publish", MOUNTED, node_publish, node_unpublish, check=stage_and_read_file),
    node_case("node publish readonly", MOUNTED, node_publish_readonly, node_unpublish, check=stage_and_read_file),
    node_case("node unpublish", (*MOUNTED, node_publish), node_unpublish, node_publish, check=stage_and_read_file),
    node_case("node publish a block volume", (create, publish, stage), node_publish, node_unpublish, block=True),
    node_case(
        "node unpublish a block volume",
        (create, publish, stage, node_publish),
        node_unpublish,
        node_publish,
        block=True,
    ),
    node_case("node expand", (*MOUNTED, expand), node_expand, None, check=stage_and_read_file, fs_type="xfs"),
)


def parameters() -> list[object]:
    return [pytest.param(case, id=case.name.replace(" ", "-")) for case in CASES]
