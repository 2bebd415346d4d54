"""A machine inside this one: own processes, mounts, network, cgroups. All is gone when its first process ends.

Outside: `Machine` starts it and sees that nothing stays. Inside, `python -m tests.e2e.machine` is that first process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
NODE_IP, API_IP = "10.0.0.1", "10.96.0.1"
OWN = {
    "/var/lib/kubelet": "kubelet",
    "/var/lib/containerd": "containerd",
    "/var/lib/quarry": "state",
    "/run/quarry": "run",
}
"""Folders of the machine that are plain ones of the run's folder, since overlayfs cannot stand on overlayfs."""
CHANGED = ("/etc", "/opt", "/run", "/var/lib", "/var/log")
"""Folders that may be changed inside without this machine noticing."""

_APART = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child", "--"]
_PREFIX = "quarry-e2e-"
_LAST_WORDS_S = 20.0


class Machine:
    """`run` is its folder, on a filesystem that can be under an overlay and has room for the images."""

    def __init__(self) -> None:
        self.run = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_base()))
        # Held as long as this process lives: what nobody holds is left over.
        self._lock = (self.run / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._process: subprocess.Popen[bytes] | None = None

    def execute(self, command: Sequence[str], env: dict[str, str]) -> int:
        """Exit status of a command that runs in the machine; with it the machine ends."""
        enter = "".join(f"echo $$ > {each}/cgroup.procs; " for each in _make_cgroups(self.run.name)) + 'exec "$@"'
        first = [sys.executable, "-m", "tests.e2e.machine", str(self.run), *command]
        # The signal comes to unshare when this process dies, whatever of, and from it to the machine.
        argv = ["setpriv", "--pdeathsig", "KILL", "--", "/bin/sh", "-ec", enter, "sh", *_APART, *first]
        self._process = subprocess.Popen(argv, env=env)
        try:
            return self._process.wait()
        except KeyboardInterrupt:
            # The terminal has told those inside as well: they have a moment to say where they were.
            with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
                self._process.wait(_LAST_WORDS_S)
            raise

    def remove(self) -> list[str]:
        """Ends the machine, takes away what the kernel does not, and its folder. What could not be, in words."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        return _clear(self.run)


def sweep() -> list[str]:
    """Removes what runs that were killed have left. What there was, in words."""
    found = []
    for old in sorted(each.parent for each in _base().glob(f"{_PREFIX}*/lock")):
        with (old / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            found += [str(old), *_clear(old)]
    return found


def _base() -> Path:
    return Path(os.environ.get("QUARRY_E2E_DIR", "/var/tmp"))


def _clear(run: Path) -> list[str]:
    for device in loops(run):
        subprocess.run(["losetup", "--detach", device], check=True)
    left = _remove_cgroups(run.name)
    shutil.rmtree(run)
    return left


def _make_cgroups(name: str) -> list[Path]:
    """One below this process's own in every hierarchy: the machine's root."""
    made = []
    for mounted, own in _hierarchies():
        folder = mounted / own / name
        folder.mkdir()
        for each in ("cpuset.cpus", "cpuset.mems"):
            above = folder.parent / each
            if (folder / each).exists() and above.exists() and (inherited := above.read_text().strip()):
                (folder / each).write_text(inherited)
        made.append(folder)
    return made


def _remove_cgroups(name: str) -> list[str]:
    """A cgroup can be removed a moment after its last process ended. Those that could not be, in words."""
    left = []
    for mounted, own in _hierarchies():
        folder = mounted / own / name
        deadline = time.monotonic() + 10
        for below in [*sorted(folder.rglob("*/"), reverse=True), folder]:
            while below.is_dir():
                try:
                    below.rmdir()
                except OSError as error:
                    if time.monotonic() > deadline:
                        left.append(f"cgroup {below}: {error.strerror}")
                        break
                    time.sleep(0.05)
    return left


def _hierarchies() -> list[tuple[Path, str]]:
    """Where each cgroup hierarchy is mounted, and this process's own place in it."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, own = line.split(":", 2)
        mounted = _mounted("cgroup", names.split(",")) if names else _mounted("cgroup2", [])
        if mounted is not None:
            found.append((mounted, own.lstrip("/") if (mounted / own.lstrip("/")).is_dir() else ""))
    return found


def _mounted(kind: str, names: list[str]) -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, filesystem, options, *_ = line.split()
        if filesystem == kind and set(names) <= set(options.split(",")):
            return Path(target)
    return None


def loops(run: Path) -> list[str]:
    """Loop devices on files of the targets, known by inode: names that the kernel shows are those of some container."""
    folder = run / OWN["/run/quarry"]
    wanted = {(each.stat().st_dev, each.stat().st_ino) for each in folder.rglob("*") if each.is_file()}
    argv = ["losetup", "--json", "--list", "--output", "NAME,BACK-INO,BACK-MAJ:MIN"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    found = []
    for each in json.loads(done.stdout)["loopdevices"] if done.stdout.strip() else ():
        major, _, minor = str(each["back-maj:min"] or "0:0").strip().partition(":")
        if (os.makedev(int(major), int(minor)), int(each["back-ino"] or 0)) in wanted:
            found.append(str(each["name"]))
    return found


# --- inside --------------------------------------------------------------------------------------------------------


def _mount(*argv: str | Path) -> None:
    subprocess.run(["mount", *map(str, argv)], check=True)


def furnish(run: Path) -> None:
    """Mounts and addresses, as on a machine of its own."""
    hierarchies = [line.split(":", 2)[1] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    _mount("--make-rprivate", "/")
    for target in CHANGED:
        if not Path(target).is_dir():
            continue
        upper, work = (run / "changed" / target.strip("/").replace("/", "-") / each for each in ("upper", "work"))
        upper.mkdir(parents=True)
        work.mkdir()
        _mount("-t", "overlay", "overlay", "-o", f"lowerdir={target},upperdir={upper},workdir={work}", target)
    for target, name in OWN.items():
        Path(target).mkdir(parents=True, exist_ok=True)
        (run / name).mkdir()
        _mount("--bind", run / name, target)
    _mount("-t", "proc", "proc", "/proc")
    # Not only covered: who looks for cgroups in the list of mounts would take the first.
    subprocess.run(["umount", "--recursive", "--lazy", "/sys"], check=True)
    _mount("-t", "sysfs", "sysfs", "/sys")
    _mount("-t", "tmpfs", "tmpfs", "/dev/shm")
    _mount_cgroups(hierarchies)
    _mount("--make-rshared", "/")
    for argv in (["link", "set", "lo", "up"], *(["addr", "add", f"{ip}/32", "dev", "lo"] for ip in (NODE_IP, API_IP))):
        subprocess.run(["ip", *argv], check=True)


def _mount_cgroups(hierarchies: list[str]) -> None:
    _mount("-t", "tmpfs", "tmpfs", CGROUPS)
    for names in filter(None, hierarchies):
        folder = CGROUPS / names.removeprefix("name=")
        folder.mkdir()
        options = f"none,{names}" if names.startswith("name=") else names
        _mount("-t", "cgroup", "-o", options, "cgroup", folder)
    if any(hierarchies) and "" in hierarchies:
        (CGROUPS / "unified").mkdir()
        _mount("-t", "cgroup2", "cgroup2", CGROUPS / "unified")
    elif "" in hierarchies:
        _mount("-t", "cgroup2", "cgroup2", CGROUPS)
        _leave_root()


def _leave_root() -> None:
    """cgroup v2: one with processes of its own gives no controllers to those below it."""
    leaf = CGROUPS / "first"
    leaf.mkdir()
    for pid in (CGROUPS / "cgroup.procs").read_text().split():
        (leaf / "cgroup.procs").write_text(pid)
    for name in (CGROUPS / "cgroup.controllers").read_text().split():
        (CGROUPS / "cgroup.subtree_control").write_text(f"+{name}")


def first_process(run: Path, command: Sequence[str]) -> int:
    """Furnishes the machine, runs the command, buries orphans; exit status of the command."""
    furnish(run)
    process = subprocess.Popen(command)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, _: process.send_signal(signal.SIGINT))
    while True:
        pid, status = os.wait()
        if pid == process.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(first_process(Path(sys.argv[1]), sys.argv[2:]))
