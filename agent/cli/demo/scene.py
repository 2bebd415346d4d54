"""What the steps of the demo share: the running agent, the CSI client, the volume they work on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from agent.cli.demo.report import Reporter
from agent.cli.demo.workspace import Workspace
from agent.csi.client import CallFailed, CsiClient
from agent.daemon.standalone import Standalone
from agent.errors import QuarryError

MIB, GIB = 1 << 20, 1 << 30
VOLUME_NAME = "demo"
_ASK_AGAIN = frozenset({"ABORTED", "UNAVAILABLE"})
_ASK_AGAIN_AFTER_S = 0.1


class DemoFailed(QuarryError):
    """What a step saw is not what should be."""


@dataclass(slots=True)
class Scene:
    """`frontend` is a StorageClass value, `user` for none; `data_bytes` of random data are written."""

    workspace: Workspace
    node: Standalone
    csi: CsiClient
    reporter: Reporter
    frontend: str
    data_bytes: int
    node_name: str
    volume_id: str = ""
    digest: str = ""
    context: dict[str, str] = field(default_factory=dict)
    """The publish context: where the volume is and as whom this node is let in."""

    @property
    def size_bytes(self) -> int:
        """Size of the volume at first; it is doubled later. mkfs.xfs makes nothing below 300 MiB."""
        return max(512 * MIB, 4 * self.data_bytes)

    def progress(self, done: int, total: int) -> None:
        self.reporter.progress(f"{done // MIB} of {total // MIB} MiB")

    def check(self, seen: str) -> None:
        """Raises DemoFailed unless `seen` is the SHA-256 of what was written."""
        if seen != self.digest:
            raise DemoFailed(f"data differs: read {seen}, wrote {self.digest}")


@dataclass(frozen=True, slots=True)
class Step:
    """`action` does it and returns what is worth telling."""

    name: str
    title: str
    action: Callable[[], Awaitable[str]]


class Host(Protocol):
    """How data gets into the volume: the middle of the story, between publish and unpublish."""

    def steps(self) -> list[Step]: ...

    async def release(self) -> None:
        """Let go of the volume, wherever the steps ended. May be called twice."""
        ...


async def insist(call: Callable[[], Awaitable[object]], timeout_s: float) -> None:
    """Repeat a CSI call while its answer is "ask again" (an interrupted call may still be running)."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            await call()
        except CallFailed as error:
            if error.code.name not in _ASK_AGAIN or time.monotonic() > deadline:
                raise
            await asyncio.sleep(_ASK_AGAIN_AFTER_S)
        else:
            return


def size(size_bytes: int) -> str:
    """A size for people: 64 MiB, 1.9 GiB."""
    if size_bytes >= GIB:
        return f"{size_bytes / GIB:.3g} GiB"
    return f"{size_bytes / MIB:{'.0f' if size_bytes >= 999.5 * MIB else '.3g'}} MiB"
