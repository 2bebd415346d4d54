"""The snapshot calls of the Controller service, and the answers that are admitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import Message
from grpc import StatusCode

from agent.csi.pb import csi_pb2 as csi
from tests.model.calls import NO_SNAPSHOT
from tests.model.world import Call, Outcome, Setting, Snap, World


@dataclass(frozen=True)
class CreateSnapshot(Call):
    name: str
    volume: str
    method = "Controller/CreateSnapshot"

    def request(self, setting: Setting) -> Message:
        return csi.CreateSnapshotRequest(name=self.name, source_volume_id=setting.id_of(self.volume))

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        if not 0 < len(self.name.encode()) <= 128:
            yield Outcome(StatusCode.INVALID_ARGUMENT, world)
            return
        existing = world.snapshot(self.name)
        if existing is not None:
            if existing.volume.name == self.volume:
                yield self._told(existing, world, setting)
            else:
                yield Outcome(StatusCode.ALREADY_EXISTS, world)
            return
        volume = world.get(self.volume)
        if volume is None:
            yield Outcome(StatusCode.NOT_FOUND, world)
            return
        surely, perhaps = setting.room(world, volume.tier, volume.thick)
        if volume.size <= perhaps:
            snapshot = Snap(self.name, "", replace(volume, attached=None, source=None))
            yield self._told(snapshot, world, setting)
        if volume.size > surely:
            yield Outcome(StatusCode.RESOURCE_EXHAUSTED, world)

    @staticmethod
    def _told(snapshot: Snap, world: World, setting: Setting) -> Outcome:
        def learned(response: Any) -> World:
            return world.having_snapshot(replace(snapshot, id=response.snapshot.snapshot_id))

        def holds(response: Any) -> bool:
            told = response.snapshot
            fresh = snapshot.id or all(each.id != told.snapshot_id for each in world.snapshots)
            return bool(fresh) and told.ready_to_use and describes(told, snapshot, setting)

        return Outcome(StatusCode.OK, world.having_snapshot(snapshot), holds, learned)


@dataclass(frozen=True)
class DeleteSnapshot(Call):
    name: str
    id: str = NO_SNAPSHOT
    method = "Controller/DeleteSnapshot"

    def bound(self, snapshot_ids: Mapping[str, str]) -> Call:
        return replace(self, id=snapshot_ids.get(self.name, NO_SNAPSHOT))

    def request(self, setting: Setting) -> Message:
        return csi.DeleteSnapshotRequest(snapshot_id=self.id)

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        snapshot = world.snapshot(self.name)
        if snapshot is None or snapshot.id != self.id:
            yield Outcome(StatusCode.OK, world)
        if snapshot is not None and snapshot.id in (self.id, ""):
            yield Outcome(StatusCode.OK, world.without_snapshot(self.name))


@dataclass(frozen=True)
class GetSnapshot(Call):
    name: str
    id: str = NO_SNAPSHOT
    method = "Controller/GetSnapshot"

    def bound(self, snapshot_ids: Mapping[str, str]) -> Call:
        return replace(self, id=snapshot_ids.get(self.name, NO_SNAPSHOT))

    def request(self, setting: Setting) -> Message:
        return csi.GetSnapshotRequest(snapshot_id=self.id)

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        snapshot = world.snapshot(self.name)
        if snapshot is None or snapshot.id != self.id:
            yield Outcome(StatusCode.NOT_FOUND, world)
        if snapshot is not None and snapshot.id in (self.id, ""):
            yield Outcome(StatusCode.OK, world, lambda response: describes(response.snapshot, snapshot, setting))


@dataclass(frozen=True)
class ListSnapshots(Call):
    """All snapshots, those of one volume, or the one with an id; `page` entries at a time."""

    volume: str = ""
    name: str = ""
    page: int = 0
    id: str = ""
    method = "Controller/ListSnapshots"

    def bound(self, snapshot_ids: Mapping[str, str]) -> Call:
        return replace(self, id=snapshot_ids.get(self.name, NO_SNAPSHOT)) if self.name else self

    def request(self, setting: Setting) -> Message:
        volume = setting.id_of(self.volume) if self.volume else ""
        return csi.ListSnapshotsRequest(source_volume_id=volume, snapshot_id=self.id, max_entries=self.page)

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        if self.page < 0:
            yield Outcome(StatusCode.INVALID_ARGUMENT, world)
            return
        expected = [each for each in world.snapshots if self.volume in ("", each.volume.name)]
        if self.name:
            expected = [each for each in expected if each.id == self.id]
        yield Outcome(StatusCode.OK, world, lambda response: self._tells(response, expected, setting))

    @staticmethod
    def _tells(response: Any, expected: list[Snap], setting: Setting) -> bool:
        listed = [entry.snapshot for entry in response.entries]
        ordered = sorted(expected, key=lambda each: each.id)
        return len(listed) == len(ordered) and all(
            map(lambda told, each: describes(told, each, setting), listed, ordered)
        )


def describes(told: Any, snapshot: Snap, setting: Setting) -> bool:
    """Whether what was told is that snapshot."""
    known = snapshot.id in ("", told.snapshot_id)
    of = (told.source_volume_id, told.size_bytes) == (setting.id_of(snapshot.volume.name), snapshot.volume.size)
    return known and of and told.creation_time.seconds > 0
