"""Random operations on a pool, checked against a simple model; in between the target starts anew."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field, replace

import pytest

from agent.embedded.bdev import IoFailure
from agent.embedded.rpc import RpcFault

from .conftest import MIB, Machine

BLOCK = 4096
POOL_MIB = 48


@dataclass
class Model:
    """One lvol: the fill byte of each cluster, and what the target should say of it."""

    clusters: list[int]
    read_only: bool = False
    parent: str | None = None
    children: set[str] = field(default_factory=set)


class Play:
    """Does one random thing after the other, on the target and on the model."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine = machine
        self.random = random.Random(seed)
        self.lvols: dict[str, Model] = {}
        self.number = 0

    def pick(self) -> tuple[str, Model]:
        name = self.random.choice(sorted(self.lvols))
        return name, self.lvols[name]

    def fresh(self) -> str:
        self.number += 1
        return f"v{self.number}"

    async def step(self) -> None:
        if not self.lvols:
            await self.create()
            return
        weights = {
            self.create: 2,
            self.write: 8,
            self.unmap: 2,
            self.resize: 2,
            self.snapshot: 2,
            self.clone: 2,
            self.decouple: 1,
            self.inflate: 1,
            self.rename: 1,
            self.delete: 3,
            self.restart: 1,
        }
        await self.random.choices(list(weights), list(weights.values()))[0]()

    async def create(self) -> None:
        name, size, thin = self.fresh(), self.random.randrange(1, 8), self.random.random() < 0.7
        try:
            await self.machine.call(
                "bdev_lvol_create", lvol_name=name, size_in_mib=size, lvs_name="pool", thin_provision=thin
            )
        except RpcFault as fault:
            assert fault.message in ("No space left on device", "Cannot allocate memory")
        else:
            self.lvols[name] = Model([0] * size)

    async def write(self) -> None:
        name, model = self.pick()
        if not model.clusters:
            return
        cluster, fill = self.random.randrange(len(model.clusters)), self.random.randrange(1, 256)
        try:
            await self.machine.bdev(f"pool/{name}").write(cluster * MIB, bytes([fill]) * MIB)
        except IoFailure as failure:
            assert failure.errno == 30 if model.read_only else failure.errno == 28
        else:
            assert not model.read_only
            model.clusters[cluster] = fill

    async def unmap(self) -> None:
        name, model = self.pick()
        if model.clusters and not model.read_only:
            cluster = self.random.randrange(len(model.clusters))
            await self.machine.bdev(f"pool/{name}").unmap(cluster * MIB, MIB)
            model.clusters[cluster] = 0

    async def resize(self) -> None:
        name, model = self.pick()
        size = self.random.randrange(0, 10)
        try:
            await self.machine.call("bdev_lvol_resize", name=f"pool/{name}", size_in_mib=size)
        except RpcFault as fault:
            assert fault.message == ("Operation not permitted" if model.read_only else "No space left on device")
        else:
            assert not model.read_only
            model.clusters = (model.clusters + [0] * size)[:size]

    async def snapshot(self) -> None:
        name, model = self.pick()
        new = self.fresh()
        try:
            await self.machine.call("bdev_lvol_snapshot", lvol_name=f"pool/{name}", snapshot_name=new)
        except RpcFault as fault:
            assert fault.message == ("Invalid argument" if model.read_only else "Cannot allocate memory")
            return
        assert not model.read_only
        self.lvols[new] = replace(model, clusters=list(model.clusters), read_only=True, children={name})
        if model.parent:
            self.lvols[model.parent].children ^= {name, new}
        model.parent = new

    async def clone(self) -> None:
        name, model = self.pick()
        new = self.fresh()
        try:
            await self.machine.call("bdev_lvol_clone", snapshot_name=f"pool/{name}", clone_name=new)
        except RpcFault as fault:
            assert fault.message == ("Cannot allocate memory" if model.read_only else "Invalid argument")
            return
        self.lvols[new] = Model(list(model.clusters), parent=name)
        model.children.add(new)

    async def decouple(self) -> None:
        name, model = self.pick()
        try:
            await self.machine.call("bdev_lvol_decouple_parent", name=f"pool/{name}")
        except RpcFault as fault:
            assert fault.message == ("No space left on device" if model.parent else "Invalid argument")
        else:
            assert model.parent is not None
            self.hand_over(name, model)

    def hand_over(self, name: str, model: Model) -> None:
        """`name` moves from its parent to its parent's parent."""
        assert model.parent is not None
        old = self.lvols[model.parent]
        old.children.discard(name)
        model.parent = old.parent
        if model.parent:
            self.lvols[model.parent].children.add(name)

    async def inflate(self) -> None:
        name, model = self.pick()
        try:
            await self.machine.call("bdev_lvol_inflate", name=f"pool/{name}")
        except RpcFault as fault:
            assert fault.message == "No space left on device"
            return
        if model.parent:
            self.lvols[model.parent].children.discard(name)
            model.parent = None

    async def rename(self) -> None:
        name, model = self.pick()
        new = self.fresh()
        try:
            await self.machine.call("bdev_lvol_rename", old_name=f"pool/{name}", new_name=new)
        except RpcFault:
            assert model.read_only
            return
        self.lvols[new] = self.lvols.pop(name)
        if model.parent:
            self.lvols[model.parent].children ^= {name, new}
        for child in model.children:
            self.lvols[child].parent = new

    async def delete(self) -> None:
        name, model = self.pick()
        try:
            await self.machine.call("bdev_lvol_delete", name=f"pool/{name}")
        except RpcFault as fault:
            assert fault.code == -32603
            assert len(model.children) > 1
            return
        assert len(model.children) <= 1
        for child in list(model.children):
            self.hand_over(child, self.lvols[child])
        if model.parent:
            self.lvols[model.parent].children.discard(name)
        del self.lvols[name]

    async def restart(self) -> None:
        before = await self.machine.lvols()
        free = await self.machine.free_clusters()
        await self.machine.restart()
        await self.machine.reopen()
        after = await self.machine.lvols()
        for lvol in [*before.values(), *after.values()]:
            lvol.pop("is_snapshot")  # the real one forgets it too, for snapshots without clones
        assert after == before
        assert await self.machine.free_clusters() == free

    async def check(self) -> None:
        """Everything that can be seen agrees with the model, and the space adds up."""
        lvols = await self.machine.lvols()
        assert lvols.keys() == self.lvols.keys()
        for name, model in self.lvols.items():
            bdev = self.machine.bdev(f"pool/{name}")
            info = bdev.driver_specific()["lvol"]
            assert bdev.num_blocks == len(model.clusters) * MIB // BLOCK
            assert info.get("base_snapshot") == model.parent
            assert set(info.get("clones", ())) == model.children
            assert bdev.read_only == model.read_only
            file = bdev.driver_specific()["embedded"]["file"]
            assert os.stat(file).st_size == bdev.size_bytes, "a loop device has the lvol's size"  # noqa: PTH116
            for number, fill in enumerate(model.clusters):
                assert await bdev.read(number * MIB, MIB) == bytes([fill]) * MIB, f"{name} cluster {number}"
        (store,) = await self.machine.call("bdev_lvol_get_lvstores")
        used = sum(lvol["num_allocated_clusters"] for lvol in lvols.values())
        assert store["free_clusters"] == store["total_data_clusters"] - used


@pytest.mark.parametrize("seed", range(6))
async def test_random_operations_agree_with_the_model(machine: Machine, seed: int) -> None:
    await machine.pool(size_bytes=POOL_MIB * MIB)
    play = Play(machine, seed)
    for step in range(150):
        await play.step()
        if step % 25 == 0:
            await play.check()
    await play.restart()
    await play.check()
