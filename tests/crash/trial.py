"""One way through the crash matrix: the case, and the names and places of one trial of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.csi.client import CsiClient
from agent.volumes.rules.names import clone_name, group_id, member_name, volume_id

from .subject import Subject

MIB = 1 << 20


@dataclass
class Trial:
    """One volume's way through one case, over several lives of the agent."""

    subject: Subject
    case: Case
    number: int
    csi: CsiClient = field(init=False)
    """Of the agent that lives now."""
    written: bool = False
    size_bytes: int = 0

    def __post_init__(self) -> None:
        self.size_bytes = self.case.size_bytes

    @property
    def name(self) -> str:
        return f"pvc/{self.number}"

    @property
    def volume(self) -> str:
        return volume_id(self.name)

    @property
    def staging(self) -> Path:
        return self.subject.pods / f"staging-{self.number}"

    @property
    def target(self) -> Path:
        return self.subject.pods / f"target-{self.number}"

    @property
    def copy(self) -> str:
        """CSI name of a volume made of the volume or of its snapshot; `other` is one more."""
        return f"copy/{self.number}"

    @property
    def other(self) -> str:
        return f"other/{self.number}"

    @property
    def snapshot(self) -> str:
        return f"snapshot/{self.number}"

    @property
    def group(self) -> str:
        return f"group/{self.number}"

    def names(self) -> dict[str, str]:
        """What stands for this trial's names in a landscape."""
        own = {self.name: "VOLUME", self.copy: "COPY", self.other: "OTHER", self.snapshot: "SNAPSHOT"}
        paths = {f"staging-{self.number}": "STAGING", f"target-{self.number}": "TARGET"}
        members = {
            member_name(group_id(self.group), volume_id(name)): f"MEMBER-{own[name]}"
            for name in (self.name, self.other)
        }
        return own | paths | members | {self.group: "GROUP", clone_name(volume_id(self.copy)): "INTERNAL"}


Call = Callable[[Trial], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    """`before` leads to the state in which `call` is made and killed; `opposite` takes it back; `after` cleans up.

    `check`: made when all has converged, before cleaning up; it may go on from there. `crosses`: words that must be
    among the labels of the points, or the matrix is blind.
    """

    name: str
    before: tuple[Call, ...]
    call: Call
    opposite: Call | None
    after: tuple[Call, ...]
    check: Call | None = None
    crosses: tuple[str, ...] = ("commit", "call")
    frontend: str = "nvme-tcp"
    block: bool = False
    fs_type: str = "ext4"
    size_bytes: int = 16 * MIB
    provisioning: str = "thin"

    @property
    def needs_kernel(self) -> bool:
        """The machine's own devices and mounts are used, through loop devices."""
        return self.frontend == "loop"

    def skip_reason(self, kind: str) -> str:
        """Why this cannot be tried here; empty when it can."""
        if not self.needs_kernel:
            return ""
        if kind != "embedded":
            return "the loop frontend works on the embedded target only"
        if os.geteuid() != 0:
            return "mounts need root"
        if not Path("/dev/loop-control").exists():
            return "this kernel has no loop devices"
        return "" if shutil.which(f"mkfs.{self.fs_type}") else f"mkfs.{self.fs_type} is not installed"
