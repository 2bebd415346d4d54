"""The calls of the Controller service: what is sent, and which answers the specification and our docs admit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import Message
from grpc import StatusCode

from agent.csi.client import capability
from agent.csi.pb import csi_pb2 as csi
from tests.model.world import (
    DEFAULT_SIZE,
    LARGEST,
    MIB,
    NODE,
    READERS,
    SHORT_NAMES,
    Attached,
    Call,
    Mode,
    Outcome,
    Setting,
    Vol,
    World,
    rounded,
)

NO_SNAPSHOT = "snap-" + "0" * 32
_ACCEPTED = {
    "tier": ("nvme", "ssd", "hdd"),
    "provisioning": ("thin", "thick"),
    "replicas": ("1",),
    "frontend": ("nvme-tcp", "loop"),
}


def range_problem(required: int, limit: int) -> StatusCode | None:
    """What every capacity range is refused for, whatever it is for."""
    if required < 0 or limit < 0 or (limit and limit < required):
        return StatusCode.INVALID_ARGUMENT
    return StatusCode.OUT_OF_RANGE if required > LARGEST else None


@dataclass(frozen=True)
class Create(Call):
    name: str
    required: int = 0
    limit: int = 0
    parameters: tuple[tuple[str, str], ...] = ()
    source: tuple[str, str] | None = None
    """("snapshot" or "volume", its name), once bound ("snapshot", its id)."""
    method = "Controller/CreateVolume"

    def bound(self, snapshot_ids: Mapping[str, str]) -> Call:
        if self.source is None or self.source[0] != "snapshot":
            return self
        return replace(self, source=("snapshot", snapshot_ids.get(self.source[1], self.source[1])))

    def request(self, setting: Setting) -> Message:
        return csi.CreateVolumeRequest(
            name=self.name,
            capacity_range=csi.CapacityRange(required_bytes=self.required, limit_bytes=self.limit),
            volume_capabilities=[capability(block=True)],
            parameters=dict(self.parameters),
            volume_content_source=self._content_source(setting),
        )

    def _content_source(self, setting: Setting) -> csi.VolumeContentSource | None:
        kinds = csi.VolumeContentSource
        match self.source:
            case ("snapshot", known):
                return kinds(snapshot=kinds.SnapshotSource(snapshot_id=known))
            case ("volume", name):
                return kinds(volume=kinds.VolumeSource(volume_id=setting.id_of(name)))
        return None

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        if problem := self._problem():
            yield Outcome(problem, world)
            return
        existing = world.get(self.name)
        if existing is not None:
            same = existing.size >= self._least() and not (self.limit and existing.size > self.limit)
            if same and existing.parameters == self._given() and existing.source == self.source:
                yield Outcome(StatusCode.OK, world, lambda response: self._describes(response, existing, setting))
            else:
                yield Outcome(StatusCode.ALREADY_EXISTS, world)
            return
        yield from self._of_nothing(world, setting) if self.source is None else self._of_source(world, setting)

    def _of_nothing(self, world: World, setting: Setting) -> Iterator[Outcome]:
        parameters = dict(self.parameters)
        tier, thick = parameters.get("tier", "nvme"), parameters.get("provisioning") == "thick"
        if tier not in setting.pools:
            yield Outcome(StatusCode.RESOURCE_EXHAUSTED, world)
            return
        yield from self._made(world, setting, Vol(self.name, rounded(self._least()), tier, thick, self._given()))

    def _of_source(self, world: World, setting: Setting) -> Iterator[Outcome]:
        assert self.source is not None
        kind, wanted = self.source
        found = world.get(wanted) if kind == "volume" else None
        for each in world.snapshots:
            if kind == "snapshot" and each.id in (wanted, ""):
                found = each.volume
                if not each.id:
                    yield Outcome(StatusCode.NOT_FOUND, world)
        if found is None:
            yield Outcome(StatusCode.NOT_FOUND, world)
            return
        parameters = dict(self.parameters)
        too_small = (self.required and rounded(self.required) < found.size) or 0 < self.limit < found.size
        if too_small:
            yield Outcome(StatusCode.OUT_OF_RANGE, world)
        if parameters.get("tier", found.tier) != found.tier:
            yield Outcome(StatusCode.INVALID_ARGUMENT, world)
        elif not too_small:
            size, thick = rounded(self.required or found.size), parameters.get("provisioning") == "thick"
            made = Vol(self.name, size, found.tier, thick, self._given(), None, found.data, self.source)
            # A volume is cloned by way of a snapshot that nobody sees, and that weighs as the volume does.
            way = world.with_lingering(found) if kind == "volume" else world
            yield from self._made(world, setting, made, way)

    def _made(self, world: World, setting: Setting, made: Vol, way: World | None = None) -> Iterator[Outcome]:
        """`way`: the world with what may be left of the making."""
        pool = setting.pools[made.tier]
        if self.limit and made.size > self.limit:
            yield Outcome(StatusCode.OUT_OF_RANGE, world)
            return
        if (self.required or made.size) > pool.ceiling(made.thick):
            yield Outcome(StatusCode.OUT_OF_RANGE, world)
            return
        (surely, _), (_, perhaps) = (setting.room(each, made.tier, made.thick) for each in (way or world, world))
        if made.size <= perhaps:
            yield Outcome(
                StatusCode.OK,
                (way or world).having(made),
                lambda response: self._describes(response, made, setting),
            )
        if made.size > surely:
            yield Outcome(StatusCode.RESOURCE_EXHAUSTED, way or world)

    def _problem(self) -> StatusCode | None:
        if not 0 < len(self.name.encode()) <= 128 or "\0" in self.name:
            return StatusCode.INVALID_ARGUMENT
        if problem := range_problem(self.required, self.limit):
            return problem
        known = all(value in _ACCEPTED.get(key, ()) for key, value in self.parameters)
        return None if known else StatusCode.INVALID_ARGUMENT

    def _least(self) -> int:
        if self.required or self.source:
            return self.required
        if not self.limit or self.limit >= DEFAULT_SIZE:
            return DEFAULT_SIZE
        return self.limit // MIB * MIB or self.limit

    def _given(self) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(self.parameters))

    @staticmethod
    def _describes(response: Any, volume: Vol, setting: Setting) -> bool:
        found = response.volume
        same = (found.volume_id, found.capacity_bytes) == (setting.id_of(volume.name), volume.size)
        source = found.content_source
        match volume.source:
            case ("snapshot", known):
                return same and source.snapshot.snapshot_id == known
            case ("volume", name):
                return same and source.volume.volume_id == setting.id_of(name)
        return same and not found.HasField("content_source")


@dataclass(frozen=True)
class Delete(Call):
    name: str
    method = "Controller/DeleteVolume"

    def request(self, setting: Setting) -> Message:
        return csi.DeleteVolumeRequest(volume_id=setting.id_of(self.name))

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        volume = world.get(self.name)
        if volume is not None and volume.attached:
            yield Outcome(StatusCode.FAILED_PRECONDITION, world)
        else:
            yield Outcome(StatusCode.OK, world.without(self.name))


@dataclass(frozen=True)
class Publish(Call):
    name: str
    node: str = NODE
    mode: int = Mode.SINGLE_NODE_WRITER
    readonly: bool = False
    method = "Controller/ControllerPublishVolume"

    def request(self, setting: Setting) -> Message:
        access_mode = Mode(mode=self.mode)  # type: ignore[arg-type]  # also numbers that mean nothing
        block = csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume(), access_mode=access_mode)
        return csi.ControllerPublishVolumeRequest(
            volume_id=setting.id_of(self.name), node_id=self.node, readonly=self.readonly, volume_capability=block
        )

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        volume = world.get(self.name)
        if not self.node or self.mode not in SHORT_NAMES:
            yield Outcome(StatusCode.INVALID_ARGUMENT, world)
            return
        if volume is None or self.node != NODE:
            yield Outcome(StatusCode.NOT_FOUND, world)
            return
        wanted = Attached(SHORT_NAMES[self.mode], self.readonly or self.mode in READERS)
        if volume.attached not in (None, wanted):
            yield Outcome(StatusCode.ALREADY_EXISTS, world)
            return
        yield Outcome(StatusCode.OK, world.having(replace(volume, attached=wanted)), self._leads_to_it)

    @staticmethod
    def _leads_to_it(response: Any) -> bool:
        context = response.publish_context
        return all(context[key] for key in ("nqn", "address", "port", "uuid", "hostNqn"))


@dataclass(frozen=True)
class Unpublish(Call):
    name: str
    node: str = NODE
    method = "Controller/ControllerUnpublishVolume"

    def request(self, setting: Setting) -> Message:
        return csi.ControllerUnpublishVolumeRequest(volume_id=setting.id_of(self.name), node_id=self.node)

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        volume = world.get(self.name)
        if volume is None or self.node not in ("", NODE):
            yield Outcome(StatusCode.OK, world)
        else:
            yield Outcome(StatusCode.OK, world.having(replace(volume, attached=None)))


@dataclass(frozen=True)
class Expand(Call):
    name: str
    required: int
    limit: int = 0
    method = "Controller/ControllerExpandVolume"

    def request(self, setting: Setting) -> Message:
        return csi.ControllerExpandVolumeRequest(
            volume_id=setting.id_of(self.name),
            capacity_range=csi.CapacityRange(required_bytes=self.required, limit_bytes=self.limit),
        )

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        problem = range_problem(self.required, self.limit)
        if problem or not (self.required or self.limit):
            yield Outcome(problem or StatusCode.INVALID_ARGUMENT, world)
            return
        volume = world.get(self.name)
        if volume is None:
            yield Outcome(StatusCode.NOT_FOUND, world)
            return
        size = rounded(self.required)
        if volume.size >= size:
            yield Outcome(StatusCode.OK, world, lambda response: response.capacity_bytes == volume.size)
            return
        if self.limit and size > self.limit:
            yield Outcome(StatusCode.OUT_OF_RANGE, world)
            return
        surely, perhaps = setting.room(world, volume.tier, volume.thick)
        if size - volume.size <= perhaps:
            grown = world.having(replace(volume, size=size))
            yield Outcome(StatusCode.OK, grown, lambda response: response.capacity_bytes == size)
        if size > setting.pools[volume.tier].ceiling(volume.thick):
            yield Outcome(StatusCode.OUT_OF_RANGE, world)
        elif size - volume.size > surely:
            yield Outcome(StatusCode.RESOURCE_EXHAUSTED, world)


@dataclass(frozen=True)
class Validate(Call):
    name: str
    parameters: tuple[tuple[str, str], ...] = ()
    mode: int = Mode.SINGLE_NODE_WRITER
    method = "Controller/ValidateVolumeCapabilities"

    def request(self, setting: Setting) -> Message:
        access_mode = Mode(mode=self.mode)  # type: ignore[arg-type]
        block = csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume(), access_mode=access_mode)
        return csi.ValidateVolumeCapabilitiesRequest(
            volume_id=setting.id_of(self.name), volume_capabilities=[block], parameters=dict(self.parameters)
        )

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        volume = world.get(self.name)
        if volume is None:
            yield Outcome(StatusCode.NOT_FOUND, world)
            return
        fitting = self.mode in SHORT_NAMES and self.parameters in ((), volume.parameters)
        yield Outcome(StatusCode.OK, world, lambda response: response.HasField("confirmed") == fitting)


@dataclass(frozen=True)
class Get(Call):
    name: str
    method = "Controller/ControllerGetVolume"

    def request(self, setting: Setting) -> Message:
        return csi.ControllerGetVolumeRequest(volume_id=setting.id_of(self.name))

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        volume = world.get(self.name)
        if volume is None:
            yield Outcome(StatusCode.NOT_FOUND, world)
        else:
            yield Outcome(StatusCode.OK, world, lambda response: self._tells(response, volume, world, setting))

    @staticmethod
    def _tells(response: Any, volume: Vol, world: World, setting: Setting) -> bool:
        status = response.status
        nodes = [NODE] if volume.attached else []
        well = not status.volume_condition.abnormal or not setting.comfortable(world, volume.tier)
        size = response.volume.capacity_bytes
        return well and size == volume.size and list(status.published_node_ids) == nodes


@dataclass(frozen=True)
class ListAll(Call):
    """All pages of `page` entries, one after the other (0: all at once). Sent by the driver, page by page."""

    page: int = 0
    method = "Controller/ListVolumes"

    def request(self, setting: Setting) -> Message:
        return csi.ListVolumesRequest(max_entries=self.page)

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        if self.page < 0:
            yield Outcome(StatusCode.INVALID_ARGUMENT, world)
            return
        yield Outcome(StatusCode.OK, world, lambda response: self._tells(response, world, setting))

    @staticmethod
    def _tells(response: Any, world: World, setting: Setting) -> bool:
        listed = [
            (entry.volume.volume_id, entry.volume.capacity_bytes, list(entry.status.published_node_ids))
            for entry in response.entries
        ]
        expected = [(setting.id_of(each.name), each.size, [NODE] if each.attached else []) for each in world.volumes]
        return listed == sorted(expected)


@dataclass(frozen=True)
class ListFrom(Call):
    """A listing that starts at a token which this server never handed out."""

    token: str
    method = "Controller/ListVolumes"

    def request(self, setting: Setting) -> Message:
        return csi.ListVolumesRequest(starting_token=self.token)

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        yield Outcome(StatusCode.ABORTED, world)


@dataclass(frozen=True)
class Capacity(Call):
    tier: str
    thick: bool
    method = "Controller/GetCapacity"

    def request(self, setting: Setting) -> Message:
        provisioning = "thick" if self.thick else "thin"
        return csi.GetCapacityRequest(parameters={"tier": self.tier, "provisioning": provisioning})

    def outcomes(self, world: World, setting: Setting) -> Iterator[Outcome]:
        if self.tier not in setting.pools:
            yield Outcome(StatusCode.OK, world, lambda response: response.available_capacity == 0)
            return
        surely, perhaps = setting.room(world, self.tier, self.thick)
        yield Outcome(StatusCode.OK, world, lambda response: surely <= response.available_capacity <= max(0, perhaps))
