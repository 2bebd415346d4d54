"""The resources of the domain (design section 3): what is desired (`spec`) and what is observed (`status`).

Frozen dataclasses, no I/O. Sizes are bytes, times are seconds since the epoch. A resource is changed by making a new
one with `dataclasses.replace` and handing it to the store, which checks `meta.version`.
"""

from __future__ import annotations

from agent.model.common import (
    LVOL_NAME_MAX,
    NQN_PREFIX,
    POOL_PREFIX,
    VOLUME_NQN_PREFIX,
    AccessMode,
    Condition,
    ConditionStatus,
    Failure,
    Frontend,
    Meta,
    Provisioning,
    Tier,
)
from agent.model.disk import (
    Disk,
    DiskDriver,
    DiskPhase,
    DiskSpec,
    DiskStatus,
    FreeSpace,
    PoolStatus,
)
from agent.model.node import (
    StorageNode,
    StorageNodeSpec,
    StorageNodeStatus,
    TargetState,
)
from agent.model.snapshot import (
    Snapshot,
    SnapshotGroup,
    SnapshotGroupSpec,
    SnapshotGroupStatus,
    SnapshotPhase,
    SnapshotSpec,
    SnapshotStatus,
)
from agent.model.volume import (
    QOS_BYTES_MAX,
    QOS_BYTES_STEP,
    QOS_IOPS_MAX,
    QOS_IOPS_STEP,
    Attachment,
    ConnectOptions,
    Endpoint,
    Qos,
    Replica,
    ReplicaStatus,
    SourceKind,
    Volume,
    VolumePhase,
    VolumeSource,
    VolumeSpec,
    VolumeStatus,
)

Resource = StorageNode | Disk | Volume | Snapshot | SnapshotGroup

__all__ = [
    "LVOL_NAME_MAX",
    "NQN_PREFIX",
    "POOL_PREFIX",
    "QOS_BYTES_MAX",
    "QOS_BYTES_STEP",
    "QOS_IOPS_MAX",
    "QOS_IOPS_STEP",
    "VOLUME_NQN_PREFIX",
    "AccessMode",
    "Attachment",
    "Condition",
    "ConditionStatus",
    "ConnectOptions",
    "Disk",
    "DiskDriver",
    "DiskPhase",
    "DiskSpec",
    "DiskStatus",
    "Endpoint",
    "Failure",
    "FreeSpace",
    "Frontend",
    "Meta",
    "PoolStatus",
    "Provisioning",
    "Qos",
    "Replica",
    "ReplicaStatus",
    "Resource",
    "Snapshot",
    "SnapshotGroup",
    "SnapshotGroupSpec",
    "SnapshotGroupStatus",
    "SnapshotPhase",
    "SnapshotSpec",
    "SnapshotStatus",
    "SourceKind",
    "StorageNode",
    "StorageNodeSpec",
    "StorageNodeStatus",
    "TargetState",
    "Tier",
    "Volume",
    "VolumePhase",
    "VolumeSource",
    "VolumeSpec",
    "VolumeStatus",
]
