"""Volumes on real loop devices and mounts in a temporary directory, everything undone at the end of each test."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pytest

from agent.errors import Busy
from agent.host.process import find_program
from agent.model import (
    Attachment,
    Frontend,
    Meta,
    ReplicaStatus,
    Tier,
    Volume,
    VolumePhase,
    VolumeSpec,
    VolumeStatus,
)
from agent.volumes.attach.frontends import LoopFrontend
from agent.volumes.attach.node import NodeVolumes
from agent.volumes.rules.names import volume_id

T = TypeVar("T")
NODE = "node-a"
MIB = 1 << 20
SIZES = {"ext4": 64 * MIB, "xfs": 320 * MIB, "btrfs": 128 * MIB}
"""Of a volume that is large enough for the filesystem."""


def have(*programs: str) -> str | None:
    """Why a test that needs root and these programs cannot run here."""
    if os.geteuid() != 0:
        return "needs root: mounts and loop devices"
    missing = [name for name in ("losetup", "blkid", "mount", "cmp", *programs) if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not Path("/dev/loop-control").exists():
        return "this kernel has no loop devices"
    return None


@pytest.fixture(autouse=True)
def _able(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("root") and (reason := have("mkfs.ext4")):
        pytest.skip(reason)


async def until_done(call: Callable[[], Awaitable[T]]) -> T:
    """As a caller that repeats the call while it is told to."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except Busy:
                await asyncio.sleep(0.05)


@dataclass
class Machine:
    """One node: its files stand for the lvols of an embedded target."""

    home: Path
    node_name: str = NODE
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def mounts(self) -> Path:
        return self.home / "mounts"

    @property
    def state(self) -> Path:
        return self.home / "state"

    async def local_path(self, name: str) -> Path | None:
        return self.files.get(name)

    async def count(self) -> None:
        """There is no target that would count what is written."""

    def node(self, freeze_timeout_s: float = 20.0) -> NodeVolumes:
        """A fresh agent: nothing remembered but what is on disk."""
        frontends = {Frontend.LOOP: LoopFrontend(self.local_path, self.state / "loop", self.count)}
        return NodeVolumes(self.node_name, [self.mounts], frontends, self.state, freeze_timeout_s)

    def volume(self, name: str = "v", size_bytes: int = 64 * MIB, readonly: bool = False) -> Volume:
        """A published volume with a sparse file behind it."""
        identity = volume_id(name)
        self.files[identity] = self.home / f"{name}.lvol"
        if not self.files[identity].exists():
            with self.files[identity].open("wb") as file:
                file.truncate(size_bytes)
        return Volume(
            Meta(identity),
            VolumeSpec(
                name,
                size_bytes,
                Tier.SSD,
                frontend=Frontend.LOOP,
                attachments=(Attachment(self.node_name, "nqn.host", readonly=readonly),),
            ),
            VolumeStatus(VolumePhase.READY, size_bytes, (ReplicaStatus("r0", True, "lvol-" + name),)),
        )

    def grown(self, volume: Volume, size_bytes: int) -> Volume:
        os.truncate(self.files[volume.meta.name], size_bytes)
        return replace(
            volume,
            spec=replace(volume.spec, size_bytes=size_bytes),
            status=replace(volume.status, size_bytes=size_bytes),
        )

    def path(self, name: str) -> Path:
        made = self.mounts / name
        made.mkdir(parents=True, exist_ok=True)
        return made

    def loops(self) -> list[str]:
        """Loop devices on our files."""
        listed = subprocess.run(["losetup", "-J", "-l"], capture_output=True, text=True, check=True).stdout
        entries = json.loads(listed)["loopdevices"] if listed.strip() else []
        return [entry["name"] for entry in entries if str(entry["back-file"]).startswith(str(self.home))]

    def mounted(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [target for line in lines if (target := line.split()[4]).startswith(str(self.home))]

    def clean(self) -> None:
        for target in reversed(self.mounted()):
            subprocess.run(["fsfreeze", "-u", target], check=False, capture_output=True)
            subprocess.run(["umount", "-l", target], check=False)
        for device in self.loops():
            subprocess.run(["blockdev", "--setrw", device], check=False)
            subprocess.run(["losetup", "-d", device], check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    home = Path(os.path.realpath(tmp_path))
    (home / "mounts").mkdir()
    made = Machine(home)
    try:
        yield made
    finally:
        made.clean()
        assert made.mounted() == []


Programs = Callable[[str, str], None]


@pytest.fixture
def programs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Puts a shell script in the place of a program; "$real" is the program itself."""
    folder = machine.home / "bin"
    folder.mkdir()

    def put(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\nreal={find_program(name)}\n{script}\n")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return put
