"""Images as containerd imports them: an archive in the OCI image layout, layers shared between its images."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.layers import Layer

_TYPE = "application/vnd.oci.image"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Image:
    """Layers from below, and how a container of it starts."""

    reference: str
    layers: tuple[Layer, ...]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"

    def config(self) -> dict[str, Any]:
        run = {
            "Env": [f"{key}={value}" for key, value in self.env.items()],
            "Entrypoint": list(self.entrypoint) or None,
            "Cmd": list(self.command) or None,
            "WorkingDir": self.workdir,
        }
        return {
            "architecture": _MACHINES[platform.machine()],
            "os": "linux",
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest()}" for layer in self.layers]},
        }


def write(images: Sequence[Image], archive: Path) -> None:
    """One archive of all of them."""
    layers = {layer.digest(): layer for image in images for layer in image.layers}
    with tarfile.open(archive, "w") as file:
        _add(file, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        for digest, layer in layers.items():
            file.add(layer.tar, f"blobs/sha256/{digest}")
        index = {"schemaVersion": 2, "manifests": [_add_image(file, image) for image in images]}
        _add(file, "index.json", json.dumps(index).encode())


def _add_image(file: tarfile.TarFile, image: Image) -> dict[str, Any]:
    layers = [_described("layer.v1.tar", layer.digest(), layer.tar.stat().st_size) for layer in image.layers]
    config = _add_blob(file, "config.v1+json", image.config())
    manifest = {"schemaVersion": 2, "mediaType": f"{_TYPE}.manifest.v1+json", "config": config, "layers": layers}
    described = _add_blob(file, "manifest.v1+json", manifest)
    return {**described, "annotations": {"io.containerd.image.name": image.reference}}


def _add_blob(file: tarfile.TarFile, kind: str, document: dict[str, Any]) -> dict[str, Any]:
    content = json.dumps(document).encode()
    digest = hashlib.sha256(content).hexdigest()
    _add(file, f"blobs/sha256/{digest}", content)
    return _described(kind, digest, len(content))


def _described(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": f"{_TYPE}.{kind}", "digest": f"sha256:{digest}", "size": size}


def _add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    file.addfile(info, io.BytesIO(content))
