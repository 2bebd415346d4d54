"""Volumes as the tests of the store write them."""

from __future__ import annotations

from dataclasses import replace

from agent.model import (
    Meta,
    Tier,
    Volume,
    VolumePhase,
    VolumeSpec,
)

from .plane import Plane

VOLUMES = "/apis/quarry.storage/v1alpha1/volumes"
MERGE = "application/merge-patch+json"


def volume(name: str = "vol-a", size_bytes: int = 1 << 30) -> Volume:
    return Volume(Meta(name), VolumeSpec(csi_name=f"pvc-{name}", size_bytes=size_bytes, tier=Tier.SSD))


def resized(of: Volume, size_bytes: int) -> Volume:
    return replace(of, spec=replace(of.spec, size_bytes=size_bytes))


def told(of: Volume, message: str) -> Volume:
    return replace(of, status=replace(of.status, phase=VolumePhase.READY, message=message))


def names(plane: Plane) -> set[str]:
    return {item["metadata"]["name"] for item in plane.request("GET", VOLUMES)["items"]}
