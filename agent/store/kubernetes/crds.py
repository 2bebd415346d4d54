"""The CustomResourceDefinitions as files: `python -m agent.store.kubernetes.crds k8s/crds` writes them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from agent.store.kubernetes import schema
from agent.store.kubernetes.kinds import GROUP, KINDS, VERSION, Kind

Json = dict[str, Any]

_HEAD = "# Made from agent/model by `make crds`: change it there.\n"

_Column = tuple[str, str, str]
"""Heading, type, JSON path."""

_PHASE: _Column = ("Phase", "string", ".status.phase")
_AGE: _Column = ("Age", "date", ".metadata.creationTimestamp")
# Of a list the API server shows the first item: most volumes have one replica and one attachment.
_COLUMNS: Mapping[str, tuple[_Column, ...]] = {
    "StorageNode": (
        ("Target", "string", ".status.targetState"),
        ("Version", "string", ".status.targetVersion"),
        ("Zone", "string", ".status.zone"),
        ("Cordoned", "boolean", ".spec.cordoned"),
        ("Alive", "string", '.status.conditions[?(@.type=="Alive")].status'),
        ("Since", "date", '.status.conditions[?(@.type=="Alive")].changedAt'),
    ),
    "Disk": (
        ("Node", "string", ".status.node"),
        ("Path", "string", ".status.path"),
        ("Tier", "string", ".status.tier"),
        ("Bytes", "integer", ".status.sizeBytes"),
        ("Eligible", "boolean", ".status.eligible"),
        ("Claimed", "boolean", ".spec.claimed"),
        _PHASE,
        ("Away", "string", '.status.conditions[?(@.type=="DataAway")].reason'),
    ),
    "Volume": (
        ("Bytes", "integer", ".status.sizeBytes"),
        ("Tier", "string", ".spec.tier"),
        _PHASE,
        ("Trouble", "string", '.status.conditions[?(@.status=="True")].reason'),
        ("Data on", "string", ".spec.placement[*].node"),
        ("Used by", "string", ".spec.attachments[*].node"),
        ("CSI name", "string", ".spec.csiName"),
    ),
    "Snapshot": (
        ("Volume", "string", ".spec.volume"),
        ("Bytes", "integer", ".status.sizeBytes"),
        _PHASE,
        ("Taken", "date", ".status.createdAt"),
    ),
    "SnapshotGroup": (_PHASE, ("Taken", "date", ".status.createdAt"), ("Volumes", "string", ".spec.volumes")),
}


def definition(kind: Kind) -> Json:
    """The CustomResourceDefinition of a kind."""
    columns = (*_COLUMNS[kind.name], _AGE)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": list(kind.short_names),
                "categories": ["quarry"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": of, "jsonPath": path} for name, of, path in columns
                    ],
                    "schema": {"openAPIV3Schema": schema.of_resource(kind.type)},
                }
            ],
        },
    }


def rendered() -> Mapping[str, str]:
    """File names and contents."""
    return {f"{kind.plural}.yaml": _HEAD + _yaml(definition(kind)) for kind in KINDS.values()}


class _Plain(yaml.SafeDumper):
    """Writes everything out: anchors are not for readers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(document: Json) -> str:
    return yaml.dump(document, Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in rendered().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
