"""A deleted snapshot goes only when nothing that stood on it is still being deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.errors import RpcError
from agent.model import Disk, Meta, Provisioning, Snapshot, SnapshotPhase, SnapshotSpec, SnapshotStatus, Tier
from agent.pools.disk_records import DiskRecords
from agent.pools.ledger import Ledger, Pool
from agent.pools.lost_disks import LostDisks
from agent.pools.zeroing import Zeroing
from agent.store.local import open_local
from agent.volumes.rules.names import snapshot_id, volume_id
from agent.volumes.service.lineage import Lineage
from agent.volumes.target.snapshot_reconcile import SnapshotReconciler

SNAPSHOT, CLONE = snapshot_id("s"), volume_id("clone")


class Target:
    """Has the snapshot, and no longer lists the clone, whose deletion is under way."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        assert params is not None
        if method == "bdev_lvol_delete":
            self.deleted.append(params["name"])
            return True
        assert method == "bdev_get_bdevs"
        if self.deleted:
            raise RpcError(method, -19, "No such device")
        lvol = {
            "lvol_store_uuid": "",
            "base_bdev": "",
            "snapshot": True,
            "clone": False,
            "clones": [],
            "thin_provision": True,
            "num_allocated_clusters": 1,
        }
        return [
            {
                "name": "uuid-of-s",
                "aliases": [params["name"]],
                "product_name": "Logical Volume",
                "block_size": 4096,
                "num_blocks": 4096,
                "uuid": "uuid-of-s",
                "driver_specific": {"lvol": lvol},
            }
        ]


class Ready:
    async def ready(self) -> None:
        return


async def test_a_clone_that_is_being_deleted_is_waited_for(tmp_path: Path) -> None:
    store, target, lineage = await open_local(tmp_path / "db"), Target(), Lineage()
    ledger = Ledger(1.0)
    ledger.set_pool(Pool("d0", "node-a", Tier.SSD, 1 << 30, 1 << 30, 1 << 20))
    reconciler: Any = Ready()
    await store.create(Disk(Meta("d0")))
    zeroing = Zeroing(target, DiskRecords(store, "node-a"), 0.1)
    lost = LostDisks(store, lambda name: None)
    snapshots = SnapshotReconciler(target, store, ledger, reconciler, lineage, zeroing, lost)
    spec = SnapshotSpec("s", volume_id("v"), "node-a", "d0", 1 << 24, Provisioning.THIN)
    status = SnapshotStatus(SnapshotPhase.READY, 1 << 24, 1.0, (("r0", "uuid-of-s"),))
    snapshot = await store.create(Snapshot(Meta(SNAPSHOT, deleting=True), spec, status))
    lineage.add(snapshot)
    lineage.put_on(CLONE, SNAPSHOT)
    try:
        async with lineage.lvols.hold(CLONE):
            removing = asyncio.create_task(snapshots.settle(snapshot))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not target.deleted
            lineage.gone(CLONE)
        assert await removing is None
        assert len(target.deleted) == 1
    finally:
        await store.close()


def test_children_follow_every_change() -> None:
    lineage = Lineage()
    lineage.reset({"a": "s", "b": "s"})
    assert lineage.children_of("s") == ("a", "b")
    lineage.cut("a", "t")
    assert (lineage.children_of("s"), lineage.children_of("t")) == (("b", "t"), ("a",))
    lineage.gone("t", "a")
    assert (lineage.children_of("s"), lineage.children_of("t")) == (("a", "b"), ())
    lineage.gone("a")
    lineage.put_on("b", "")
    assert lineage.children_of("s") == ()
