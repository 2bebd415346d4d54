"""Valid requests of volumes' lives, as random as validity allows: what mutation starts from, and what makes state."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import Message

from agent.csi import TOPOLOGY_NODE
from agent.csi.client import capability
from agent.csi.pb import csi_pb2 as csi
from tests.crash.machine import NODE
from tests.fuzz.generate import SECRET_MARK, Vocabulary

MIB = 1 << 20
SECRETS = {"user": f"{SECRET_MARK}-user", "password": f"{SECRET_MARK}-password"}
_SIZES = (0, 1, MIB, 16 * MIB, 48 * MIB)

LIFE = (
    "Controller/CreateVolume",
    "Controller/ControllerPublishVolume",
    "Node/NodeStageVolume",
    "Node/NodePublishVolume",
    "Node/NodeGetVolumeStats",
    "Controller/ControllerExpandVolume",
    "Node/NodeExpandVolume",
    "Controller/ListVolumes",
    "Controller/CreateSnapshot",
    "Node/NodeUnpublishVolume",
    "Node/NodeUnstageVolume",
    "Controller/ControllerUnpublishVolume",
    "Controller/DeleteVolume",
    "Controller/DeleteSnapshot",
)


@dataclass
class Scene:
    """The volumes there may be, and where they may be mounted."""

    pods: Path
    canary: Path
    frontend: str
    names: tuple[str, ...] = ("pvc-1", "pvc-2", "pvc-3", "pvc-4", "raw-1", "raw-2", "ünïcödé", "x" * 128)
    snapshot_names: tuple[str, ...] = ("snap-1", "snap-2", "ünïcödé ☃")
    ids: dict[str, str] = field(default_factory=dict)
    snapshot_ids: dict[str, str] = field(default_factory=dict)
    group_names: tuple[str, ...] = ("group-1", "group-2")
    group_ids: dict[str, str] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)

    @property
    def staging(self) -> list[str]:
        return [str(self.pods / f"staging-{index}") for index in range(len(self.names))]

    @property
    def targets(self) -> list[str]:
        return [str(self.pods / f"target-{index}") for index in range(len(self.names))]

    def vocabulary(self) -> Vocabulary:
        """Words of this scene, and those near it that lead elsewhere."""
        pods, canary = self.pods, self.canary
        elsewhere = [
            str(canary),
            str(canary / "target"),
            str(canary / "empty-file"),
            f"{pods}/../canary/target",
            f"{pods}/./target-0",
            f"{pods}//target-0",
            f"{pods}/link/target",
            f"{pods}/link",
            f"{pods}/link-to-file",
            f"{pods}/dangling",
            f"{pods}/occupied",
            f"{pods}/occupied/file",
            f"{pods}/missing/target",
            str(pods),
            f"{pods}-not",
            f"{pods}/target-0/inside",
            "/proc/self/fd/3",
            "/dev/null",
            "relative/path",
        ]
        ids = [*self.ids.values(), "vol-" + "0" * 32, "no-such-volume"]
        return Vocabulary(
            words={
                "_id": ids,
                "_ids": ids,
                "node_id": [NODE, "no-such-node"],
                "snapshot_id": [*self.snapshot_ids.values(), "snap-" + "0" * 32, "no-such-snapshot"],
                "group_snapshot_id": [*self.group_ids.values(), "group-" + "0" * 32, "no-such-group"],
                "name": [*self.names, *self.snapshot_names, *self.group_names],
                "_path": [*self.staging, *self.targets, *self.staging, *self.targets, *elsewhere],
                "starting_token": [*self.tokens, "after:", "after:vol-"],
                "fs_type": ["ext4", "xfs", "btrfs", "vfat"],
                "mount_flags": ["noatime", "ro", "discard", "bind", "loop=/etc/passwd", "x" * 300, "a,b=c"],
                "volume_mount_group": ["1000", "-1", "root"],
                "key": [TOPOLOGY_NODE],
            },
            keys=[
                "tier",
                "provisioning",
                "replicas",
                "frontend",
                "iops",
                "csi.storage.k8s.io/fstype",
                "csi.storage.k8s.io/pvc/name",
                "mkfsOptions",
                TOPOLOGY_NODE,
                "topology.kubernetes.io/zone",
                "no-such-key",
            ],
            values=[
                "nvme",
                "ssd",
                "hdd",
                "thin",
                "thick",
                "1",
                "2",
                "0",
                "-1",
                "loop",
                "nvme-tcp",
                "ext4",
                "xfs",
                NODE,
            ],
        )


class Lifecycle:
    """Valid requests, seeded. Which of them the state admits is the agent's business."""

    def __init__(self, rng: random.Random, scene: Scene) -> None:
        self._rng = rng
        self._scene = scene
        self._steps: dict[str, int] = {}
        self._makers: dict[str, Callable[[str], Message]] = {
            "Controller/CreateVolume": self.create,
            "Controller/DeleteVolume": self._delete,
            "Controller/ControllerPublishVolume": self._publish,
            "Controller/ControllerUnpublishVolume": self._unpublish,
            "Controller/ValidateVolumeCapabilities": self._validate,
            "Controller/ListVolumes": self._list,
            "Controller/GetCapacity": self._capacity,
            "Controller/ControllerExpandVolume": self._expand,
            "Controller/ControllerGetVolume": self._get,
            "Controller/ControllerModifyVolume": self._modify,
            "Controller/CreateSnapshot": self.create_snapshot,
            "Controller/DeleteSnapshot": self._delete_snapshot,
            "Controller/ListSnapshots": self._list_snapshots,
            "Controller/GetSnapshot": self._get_snapshot,
            "GroupController/CreateVolumeGroupSnapshot": self._create_group,
            "GroupController/DeleteVolumeGroupSnapshot": self._delete_group,
            "GroupController/GetVolumeGroupSnapshot": self._get_group,
            "Node/NodeStageVolume": self._stage,
            "Node/NodeUnstageVolume": self._unstage,
            "Node/NodePublishVolume": self._node_publish,
            "Node/NodeUnpublishVolume": self._node_unpublish,
            "Node/NodeGetVolumeStats": self._stats,
            "Node/NodeExpandVolume": self._node_expand,
        }

    def request(self, method: str) -> Message | None:
        """A valid request of `method` ("Service/Method"); None when this knows none."""
        maker = self._makers.get(method)
        return maker(self._rng.choice(self._scene.names)) if maker else None

    def step(self) -> tuple[str, Message]:
        """The next step in the life of one of the volumes, with its method: created, used, deleted, and again."""
        name = self._rng.choice(self._scene.names)
        place = self._steps.get(name, 0)
        self._steps[name] = (place + 1) % len(LIFE)
        return LIFE[place], self._makers[LIFE[place]](name)

    # --- inside ----------------------------------------------------------------------------------------------

    def _id(self, name: str) -> str:
        return self._scene.ids.get(name, "vol-" + "1" * 32)

    def _place(self, name: str) -> int:
        """Each volume has a staging path of its own most of the time, as kubelet gives it."""
        return (
            self._scene.names.index(name) if self._rng.random() < 0.9 else self._rng.randrange(len(self._scene.names))
        )

    @staticmethod
    def _access(name: str) -> csi.VolumeCapability:
        return capability(block=name.startswith("raw"))

    def create(self, name: str) -> Message:
        """CreateVolume for one of the scene's names: the same name always asks for the same volume."""
        index = self._scene.names.index(name)
        parameters = {"tier": ("nvme", "ssd", "hdd")[index % 3], "frontend": self._scene.frontend}
        if index % 2:
            parameters["provisioning"] = "thick"
        request = csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=32 * MIB),
            volume_capabilities=[self._access(name)],
            parameters=parameters,
            secrets=SECRETS,
        )
        source = self._rng.random()
        if source < 0.15:
            request.volume_content_source.snapshot.snapshot_id = self._snapshot_id(name)
        elif source < 0.25:
            request.volume_content_source.volume.volume_id = self._id(self._rng.choice(self._scene.names))
        if self._rng.random() < 0.3:
            topology = csi.Topology(segments={TOPOLOGY_NODE: NODE})
            request.accessibility_requirements.CopyFrom(csi.TopologyRequirement(preferred=[topology]))
        return request

    def _delete(self, name: str) -> Message:
        return csi.DeleteVolumeRequest(volume_id=self._id(name), secrets=SECRETS)

    def _publish(self, name: str) -> Message:
        return csi.ControllerPublishVolumeRequest(
            volume_id=self._id(name), node_id=NODE, volume_capability=self._access(name), secrets=SECRETS
        )

    def _unpublish(self, name: str) -> Message:
        return csi.ControllerUnpublishVolumeRequest(volume_id=self._id(name), node_id=NODE, secrets=SECRETS)

    def _validate(self, name: str) -> Message:
        return csi.ValidateVolumeCapabilitiesRequest(
            volume_id=self._id(name), volume_capabilities=[self._access(name)], secrets=SECRETS
        )

    def _list(self, _: str) -> Message:
        token = self._rng.choice(self._scene.tokens) if self._scene.tokens and self._rng.random() < 0.5 else ""
        return csi.ListVolumesRequest(max_entries=self._rng.choice((0, 1, 3)), starting_token=token)

    def _capacity(self, _: str) -> Message:
        return csi.GetCapacityRequest(parameters={"tier": self._rng.choice(("nvme", "ssd", "hdd"))})

    def _expand(self, name: str) -> Message:
        size = self._rng.choice((MIB, 32 * MIB, 40 * MIB))
        return csi.ControllerExpandVolumeRequest(
            volume_id=self._id(name), capacity_range=csi.CapacityRange(required_bytes=size), secrets=SECRETS
        )

    def _get(self, name: str) -> Message:
        return csi.ControllerGetVolumeRequest(volume_id=self._id(name))

    def _snapshot_name(self, name: str) -> str:
        names = self._scene.snapshot_names
        return names[self._scene.names.index(name) % len(names)]

    def _snapshot_id(self, name: str) -> str:
        return self._scene.snapshot_ids.get(self._snapshot_name(name), "snap-" + "1" * 32)

    def create_snapshot(self, name: str) -> Message:
        """CreateSnapshot of a volume of the scene."""
        return csi.CreateSnapshotRequest(
            name=self._snapshot_name(name), source_volume_id=self._id(name), secrets=SECRETS
        )

    def _delete_snapshot(self, name: str) -> Message:
        return csi.DeleteSnapshotRequest(snapshot_id=self._snapshot_id(name), secrets=SECRETS)

    def _list_snapshots(self, name: str) -> Message:
        request = csi.ListSnapshotsRequest(max_entries=self._rng.choice((0, 1)), secrets=SECRETS)
        match self._rng.randrange(3):
            case 0:
                request.snapshot_id = self._snapshot_id(name)
            case 1:
                request.source_volume_id = self._id(name)
        return request

    def _get_snapshot(self, name: str) -> Message:
        return csi.GetSnapshotRequest(snapshot_id=self._snapshot_id(name), secrets=SECRETS)

    def _modify(self, name: str) -> Message:
        key = self._rng.choice(("iops", "bandwidth", "readBandwidth", "writeBandwidth"))
        value = self._rng.choice(("0", "1000", "2000") if key == "iops" else ("0", "10Mi", "1Gi"))
        return csi.ControllerModifyVolumeRequest(
            volume_id=self._id(name), mutable_parameters={key: value}, secrets=SECRETS
        )

    def _group(self, name: str) -> str:
        names = self._scene.group_names
        return names[self._scene.names.index(name) % len(names)]

    def _group_id(self, name: str) -> str:
        return self._scene.group_ids.get(self._group(name), "group-" + "1" * 32)

    def _create_group(self, name: str) -> Message:
        volumes = list(dict.fromkeys((self._id(name), self._id(self._rng.choice(self._scene.names)))))
        return csi.CreateVolumeGroupSnapshotRequest(name=self._group(name), source_volume_ids=volumes, secrets=SECRETS)

    def _delete_group(self, name: str) -> Message:
        return csi.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=self._group_id(name), secrets=SECRETS)

    def _get_group(self, name: str) -> Message:
        return csi.GetVolumeGroupSnapshotRequest(group_snapshot_id=self._group_id(name), secrets=SECRETS)

    def _stage(self, name: str) -> Message:
        return csi.NodeStageVolumeRequest(
            volume_id=self._id(name),
            staging_target_path=self._scene.staging[self._place(name)],
            volume_capability=self._access(name),
            secrets=SECRETS,
        )

    def _unstage(self, name: str) -> Message:
        return csi.NodeUnstageVolumeRequest(
            volume_id=self._id(name), staging_target_path=self._scene.staging[self._place(name)]
        )

    def _node_publish(self, name: str) -> Message:
        place = self._place(name)
        return csi.NodePublishVolumeRequest(
            volume_id=self._id(name),
            staging_target_path=self._scene.staging[place],
            target_path=self._scene.targets[place],
            volume_capability=self._access(name),
            readonly=self._rng.random() < 0.2,
            secrets=SECRETS,
        )

    def _node_unpublish(self, name: str) -> Message:
        return csi.NodeUnpublishVolumeRequest(
            volume_id=self._id(name), target_path=self._scene.targets[self._place(name)]
        )

    def _stats(self, name: str) -> Message:
        place = self._place(name)
        path = self._rng.choice((self._scene.staging[place], self._scene.targets[place]))
        return csi.NodeGetVolumeStatsRequest(volume_id=self._id(name), volume_path=path)

    def _node_expand(self, name: str) -> Message:
        path = self._scene.targets[self._place(name)]
        return csi.NodeExpandVolumeRequest(volume_id=self._id(name), volume_path=path, secrets=SECRETS)
