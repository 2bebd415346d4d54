"""The structural schemas of the custom resources: from the model's types and docstrings, with bounds and rules."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from agent.model import (
    QOS_BYTES_MAX,
    QOS_IOPS_MAX,
    Attachment,
    Condition,
    ConnectOptions,
    Endpoint,
    Qos,
    Replica,
    ReplicaStatus,
    Resource,
    Snapshot,
    SnapshotGroupSpec,
    SnapshotSpec,
    Volume,
    VolumeSource,
    VolumeSpec,
)
from agent.store.kubernetes.shapes import Member, Shape, camel, members

Json = dict[str, Any]

_ITEMS_MAX = 1024
_TEXT_MAX = 1024
_MESSAGE_MAX = 16384
"""Bounds that nothing reaches: without any the API server refuses rules, whose cost it reckons in advance."""

_LIST_KEYS: Mapping[type[Any], str] = {Replica: "name", ReplicaStatus: "name", Attachment: "node", Condition: "type"}
"""Lists of these have one entry for each key."""

_BOUNDS: Mapping[tuple[type[Any], str], Json] = {
    (VolumeSpec, "size_bytes"): {"minimum": 1},
    (VolumeSpec, "replica_count"): {"minimum": 1, "maximum": 16},
    (VolumeSpec, "placement"): {"maxItems": 16},
    (Qos, "rw_iops"): {"maximum": QOS_IOPS_MAX},
    (Qos, "rw_bytes_per_second"): {"maximum": QOS_BYTES_MAX},
    (Qos, "read_bytes_per_second"): {"maximum": QOS_BYTES_MAX},
    (Qos, "write_bytes_per_second"): {"maximum": QOS_BYTES_MAX},
    (ConnectOptions, "loss_timeout_s"): {"minimum": -1},
    (Endpoint, "port"): {"minimum": 1, "maximum": 65535},
    (SnapshotSpec, "volume"): {"minLength": 1},
}

_SHARED = "['ReadOnlyMany', 'ReadWriteMany', 'OneWriterManyReaders']"


def _fixed(*names: str, unless: str = "") -> list[Json]:
    """Rules for fields that stay as they were made, except while `unless` is true."""
    free = f"{unless} || " if unless else ""
    return [
        {
            "rule": f"{free}has(self.{key}) == has(oldSelf.{key}) && (!has(self.{key}) || self.{key} == oldSelf.{key})",
            "message": f"{key} cannot be changed: make a new object",
        }
        for key in map(camel, names)
    ]


_NEVER_SHRINKS = {
    # A wish to grow that had no room is taken back: to what the volume really has.
    "rule": "self.spec.sizeBytes >= oldSelf.spec.sizeBytes ||"
    " (has(self.status) && has(self.status.sizeBytes) && self.status.sizeBytes > 0 &&"
    " self.spec.sizeBytes >= self.status.sizeBytes)",
    "message": "sizeBytes: a volume never shrinks",
}

_GIVEN_UP = "(!has(self.status) || !has(self.status.phase) || self.status.phase in ['Pending', 'Failed', 'Deleting'])"
"""Nothing is there that could be stranded: it was never made, or its data were declared lost before."""

_KEEPS_ITS_PLACE = {
    "rule": "!has(oldSelf.spec.placement) || oldSelf.spec.placement.size() == 0 ||"
    f" (has(self.spec.placement) && self.spec.placement.size() > 0) || {_GIVEN_UP}",
    "message": "placement: a volume that has its data keeps its place; forget the node or the disk that is lost",
}

_KEEPS_ITS_NODE = {
    "rule": "!has(oldSelf.spec.node) || oldSelf.spec.node == '' ||"
    f" (has(self.spec.node) && self.spec.node != '') || {_GIVEN_UP}",
    "message": "node: a snapshot that has its data keeps its place; forget the node or the disk that is lost",
}

_RESOURCE_RULES: Mapping[type[Any], list[Json]] = {
    Volume: [_NEVER_SHRINKS, _KEEPS_ITS_PLACE],
    Snapshot: [_KEEPS_ITS_NODE],
}
"""Rules about spec and status together."""

_RULES: Mapping[type[Any], list[Json]] = {
    VolumeSpec: [
        *_fixed("csi_name", "tier", "provisioning", "frontend", "parameters", "source", unless="oldSelf.csiName == ''"),
        {
            "rule": "!has(oldSelf.placement) || oldSelf.placement.size() == 0 || !has(self.placement) ||"
            " self.placement.size() == 0 || (self.placement.size() == oldSelf.placement.size() &&"
            " self.placement.all(p, oldSelf.placement.exists(o, o.name == p.name && o.disk == p.disk)))",
            "message": "placement: the disks of a volume stay; they may be in another node, or given up for lost",
        },
        {
            "rule": "!has(self.attachments) || self.attachments.size() < 2 ||"
            f" self.attachments.all(a, a.accessMode in {_SHARED})",
            "message": "several nodes may be attached only in access modes that are shared",
        },
    ],
    VolumeSource: [{"rule": "self.id.size() > 0", "message": "id: names the snapshot or volume"}],
    SnapshotSpec: _fixed("csi_name", "volume", "disk", "size_bytes", "provisioning", "owner", "group"),
    SnapshotGroupSpec: [
        *_fixed("csi_name", "volumes", "snapshots"),
        {
            "rule": "self.volumes.size() == self.snapshots.size()",
            "message": "snapshots are those of volumes, in the same order",
        },
    ],
}


def of_resource(resource: type[Resource]) -> Json:
    """The openAPIV3Schema of a kind."""
    parts = {member.name: member for member in members(resource)}
    spec_required = any(member.required for member in members(_of(parts["spec"].shape)))
    return {
        "type": "object",
        "description": _text(resource) or f"{resource.__name__} of Quarry.",
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this schema."},
            "kind": {"type": "string", "description": "Kind of the resource."},
            "metadata": {"type": "object"},  # the API server describes it itself, and takes nothing else here
            "spec": {**_object(_of(parts["spec"].shape)), "description": "What is desired."},
            "status": {**_object(_of(parts["status"].shape)), "description": "What is observed; the agent writes it."},
        },
        **({"required": ["spec"]} if spec_required else {}),
        **({"x-kubernetes-validations": _RESOURCE_RULES[resource]} if resource in _RESOURCE_RULES else {}),
    }


def _of(shape: Shape) -> type[Any]:
    if shape.of is None:
        raise TypeError(f"a {shape.form} has no fields")
    return shape.of


def _object(of: type[Any]) -> Json:
    told = _field_texts(of)
    schema: Json = {"type": "object", "properties": {}}
    for member in members(of):
        schema["properties"][member.key] = {
            **({"description": told[member.name]} if member.name in told else {}),
            **_value(member.shape),
            **_bounds(of, member),
        }
    required = [member.key for member in members(of) if member.required]
    if required:
        schema["required"] = required
    if of in _RULES:
        schema["x-kubernetes-validations"] = _RULES[of]
    return schema


def _bounds(of: type[Any], member: Member) -> Json:
    given = _BOUNDS.get((of, member.name), {})
    if member.shape.form == "integer" and member.default != -1:
        return {"minimum": 0, **given}
    if member.shape.form == "text" and member.name == "message":
        return {"maxLength": _MESSAGE_MAX, **given}
    return dict(given)


def _value(shape: Shape) -> Json:
    if shape.form == "object":
        return _object(_of(shape))
    if shape.form == "list" and shape.item is not None:
        return {"type": "array", "maxItems": _ITEMS_MAX, "items": _value(shape.item), **_list_type(shape.item)}
    if shape.form == "map":
        return {"type": "object", "maxProperties": _ITEMS_MAX, "additionalProperties": _value(Shape("text"))}
    if shape.form == "word":
        return {"type": "string", "enum": [str(word) for word in _words(_of(shape))]}
    plain: dict[str, Json] = {
        "text": {"type": "string", "maxLength": _TEXT_MAX},
        "integer": {"type": "integer", "format": "int64"},
        "boolean": {"type": "boolean"},
        "time": {"type": "string", "format": "date-time", "maxLength": 64},
    }
    return plain[shape.form]


def _words(of: type[StrEnum]) -> list[StrEnum]:
    return list(of)


def _list_type(item: Shape) -> Json:
    if item.of is None or item.of not in _LIST_KEYS:
        return {"x-kubernetes-list-type": "atomic"}
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [_LIST_KEYS[item.of]]}


# --- what the model says of itself -----------------------------------------------------------------------------


def _text(of: type[Any]) -> str:
    told = of.__doc__ or ""
    return "" if told.startswith(f"{of.__name__}(") else " ".join(told.split())


def _field_texts(of: type[Any]) -> Mapping[str, str]:
    """The docstrings under the fields of a dataclass, by field."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(of))).body
    texts: dict[str, str] = {}
    name = ""
    for line in getattr(tree, "body", []):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            name = line.target.id
        elif name and isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
            texts[name] = " ".join(str(line.value.value).split())
    return texts
