"""The agent under test: its process on its target, what it holds, what it may touch and what it may never touch."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.model import Snapshot, Volume
from agent.store.local import open_local
from tests.contract.targets import ADDRESS
from tests.crash.machine import NODE, Machine, holdings

TIERS = ("nvme", "ssd", "hdd")
STAGING_PATHS = 8
_LOG_TROUBLE = ("Traceback", " ERROR ", " CRITICAL ", "never retrieved", "was destroyed", "never awaited")


@dataclass(frozen=True)
class Held:
    """What the agent's process holds."""

    rss_bytes: int
    descriptors: int
    threads: int
    tasks: tuple[str, ...]
    children: int


class Subject(Machine):
    """`quarry standalone` with a disk per tier. `pods` is the one mount root; `canary` lies beside it."""

    def __init__(
        self, kind: str, disk_size: str, tiers: Sequence[str] = TIERS, settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(kind)
        self._disk_size = disk_size
        self._tiers = tiers
        self._settings = dict(settings or {})
        self.pods = self.folder / "pods"
        self.canary = self.folder / "canary"
        self.window = self.folder / "window.json"
        self._make_folders()

    def _make_folders(self) -> None:
        for index in range(STAGING_PATHS):
            (self.pods / f"staging-{index}").mkdir(parents=True)
        (self.pods / "occupied").mkdir()
        (self.pods / "occupied" / "file").write_text("somebody's")
        (self.canary / "folder" / "empty").mkdir(parents=True)
        (self.canary / "file").write_text("somebody else's")
        (self.canary / "empty-file").touch()
        (self.canary / "target").mkdir()
        (self.pods / "link").symlink_to(self.canary)
        (self.pods / "link-to-file").symlink_to(self.canary / "empty-file")
        (self.pods / "dangling").symlink_to(self.canary / "made-through-a-link")

    def start_agent(self, config: str = "") -> None:
        argv = [sys.executable, "-m", "tests.fuzz.window", "standalone"]
        argv += ["--state-dir", str(self.folder / "agent"), "--csi-endpoint", self.endpoint, "--node-name", NODE]
        argv += ["--spdk-socket", str(self.target.socket_path)]
        for tier in self._tiers:
            argv += ["--file-disk", f"{self.folder}/{tier}.img:{self._disk_size}:{tier}"]
        argv += ["--nvmf-address", ADDRESS, "--nvmf-port", str(self.port)]
        config = {"mount_roots": [str(self.pods)], "log": {"level": "debug"}, **self._settings}
        (self.folder / "config.yaml").write_text(json.dumps(config))
        argv += ["--config", str(self.folder / "config.yaml")]
        environment = {**os.environ, "QUARRY_FUZZ_WINDOW": str(self.window)}
        with (self.folder / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=Path.cwd()
            )

    # --- what it holds ---------------------------------------------------------------------------------------

    async def held(self) -> Held:
        """Asks the process itself (the window) and /proc."""
        assert self.agent is not None
        self.window.unlink(missing_ok=True)
        self.agent.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not self.window.exists():
            assert time.monotonic() < deadline, "the agent does not run its signal handler"
            await asyncio.sleep(0.01)
        process = Path(f"/proc/{self.agent.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        children = (process / "task" / str(self.agent.pid) / "children").read_text().split()
        return Held(
            rss_bytes=int(status["VmRSS"].split()[0]) * 1024,
            descriptors=len(list((process / "fd").iterdir())),
            threads=int(status["Threads"]),
            tasks=tuple(json.loads(self.window.read_text())),
            children=len(children),
        )

    async def settled(self) -> Held:
        """What it holds once it is at rest: connections given up by their callers end a little later."""
        deadline = time.monotonic() + 20
        held = await self.held()
        while True:
            await asyncio.sleep(0.5)
            last, held = held, await self.held()
            if (held.descriptors, held.tasks, held.threads) == (last.descriptors, last.tasks, last.threads):
                return held
            assert time.monotonic() < deadline, f"the agent does not come to rest: {held}"

    def mounts(self) -> list[Path]:
        """Mount points below the folder, the latest first."""
        lines = Path("/proc/self/mounts").read_text().splitlines()
        found = [line.split()[1].encode().decode("unicode_escape") for line in lines]
        return [Path(each) for each in reversed(found) if each.startswith(f"{self.folder}{os.sep}")]

    def loops(self) -> list[str]:
        """Loop devices on files below the folder."""
        found = []
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                if backing.read_text().startswith(f"{self.folder}{os.sep}"):
                    found.append(f"/dev/{backing.parts[3]}")
            except OSError:  # detached meanwhile
                continue
        return found

    def untouchable(self) -> str:
        """A digest of everything outside the mount root that a path could lead to, and of the links to it."""
        digest = hashlib.sha256()
        links = [each for each in self.pods.iterdir() if each.is_symlink()]
        beside = [each for each in self.folder.iterdir() if each.name not in ("agent.log", "log", "window.json")]
        for path in sorted([*self.canary.rglob("*"), *links, *beside, self.canary]):
            found = path.lstat()
            digest.update(f"{path} {found.st_mode:o} {found.st_ino}\n".encode())
            if path == self.canary or self.canary in path.parents:
                digest.update(f"{found.st_mtime_ns} {found.st_uid} {found.st_size}\n".encode())
            if path.is_file() and self.canary in path.parents:
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def trouble(self) -> list[str]:
        """Entries of the agent's log that should never be there, with their tracebacks."""
        entries = re.split(r"\n(?=\d{4}-\d\d-\d\dT)", self.agent_log())
        return [entry for entry in entries if any(each in entry for each in _LOG_TROUBLE)]

    def places_of(self, mark: str) -> list[str]:
        """Files of agent and target that hold `mark`; disks are sparse, so only what was written is read."""
        found = []
        for path in sorted(self.folder.rglob("*")):
            if path.is_symlink() or not path.is_file() or path.suffix == ".img" or self.canary in path.parents:
                continue
            if path.stat().st_size < 1 << 28 and mark.encode() in path.read_bytes():
                found.append(str(path))
        return found

    async def leftovers(self) -> dict[str, object]:
        """What is there although everything was deleted; empty when nothing is."""
        found = await holdings(self.target.socket_path)
        store = await open_local(self.folder / "agent" / "quarry.db")
        try:
            kinds = (Volume, Snapshot)
            records = [str(each) for kind in kinds for each in await store.list(kind)]
        finally:
            await store.close()
        notes = [str(each) for each in (self.folder / "agent" / "node").rglob("*") if each.is_file()]
        files = [str(each) for each in self.pods.rglob("*") if each.is_file() and not each.is_symlink()]
        left: dict[str, object] = {
            "lvols": found.lvols,
            "subsystems": sorted(found.exports),
            "records": records,
            "notes": notes,
            "mounts": [str(each) for each in self.mounts()],
            "loop devices": self.loops(),
            "files": [each for each in files if not each.endswith("/occupied/file")],
        }
        return {kind: what for kind, what in left.items() if what}

    def close(self) -> None:
        for each in self.mounts():
            subprocess.run(["umount", "-l", str(each)], check=False, timeout=10)
        super().close()
        for device in self.loops():
            subprocess.run(["losetup", "-d", device], check=False, timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)


def frontend(subject: Subject) -> str:
    """With root, loop devices and the embedded target the node side really mounts; else its refusals are tried."""
    mounts = os.geteuid() == 0 and Path("/dev/loop-control").exists() and subject.kind == "embedded"
    return "loop" if mounts else "nvme-tcp"
