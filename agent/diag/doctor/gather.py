"""Gathers the facts that the checks judge: the one place of `quarry doctor` that looks at the machine. Only reads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import msgspec
import psutil

from agent.diag import ENDPOINT_FILE, activity
from agent.diag.doctor.facts import (
    AgentFacts,
    DiskFacts,
    Facts,
    FolderFacts,
    HostIdentity,
    Hugepages,
    KubernetesFacts,
    ModuleState,
    PortFacts,
    Program,
    TargetFacts,
)
from agent.diag.doctor.machine_checks import FOR_VOLUMES, OPTIONAL, REQUIRED
from agent.errors import QuarryError
from agent.host import clock, process, udev
from agent.model import ConditionStatus
from agent.pools.disk_conditions import POWER_LOSS
from agent.spdk import app, nature
from agent.spdk.client import Client

MODULES = ("nvme_tcp", "ublk_drv", "loop", "vfio_pci")
TARGET_TIMEOUT_S = 3.0
AGENT_TIMEOUT_S = 5.0
VERSION_TIMEOUT_S = 5.0

_VERSION_ARGUMENTS = {"nvme": "version", "mkfs.ext4": "-V", "mkfs.xfs": "-V", "mkfs.btrfs": "--version"}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be checked, as the agent's settings name it. `in_cluster`: under Kubernetes."""

    state_dir: Path
    spdk_socket: Path | None
    csi_socket: Path
    nvmf_port: int
    in_cluster: bool


class _Readiness(msgspec.Struct):
    """What /readyz answers."""

    ready: bool
    reasons: tuple[dict[str, str], ...] = ()


class _Condition(msgspec.Struct):
    type: str
    status: str
    message: str = ""


class _DiskStatus(msgspec.Struct):
    path: str
    conditions: tuple[_Condition, ...] = ()


class _Disk(msgspec.Struct):
    status: _DiskStatus


class _Disks(msgspec.Struct):
    """What /v1/disks answers, as far as it is of interest here."""

    items: tuple[_Disk, ...] = ()


async def gather(subject: Subject) -> Facts:
    """All facts; what cannot be read is left as unknown. Takes no longer than some seconds."""
    target, programs, agent = await asyncio.gather(_target(subject), _programs(), _agent(subject.state_dir))
    port = await asyncio.to_thread(_port, subject.nvmf_port)
    memory = psutil.virtual_memory()
    return Facts(
        kernel=platform.release(),
        architecture=platform.machine(),
        modules=_modules(platform.release()),
        cpu_flags=_cpu_flags(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        hugepages=_hugepages(),
        iommu_groups=_count(Path("/sys/kernel/iommu_groups")),
        programs=programs,
        target=target,
        port=port,
        host=HostIdentity(_text(Path("/etc/nvme/hostnqn")), _text(Path("/etc/nvme/hostid"))),
        state_dir=_folder(subject.state_dir),
        clock_synchronized=clock.is_synchronized(),
        now=time.time(),
        agent=agent,
        disks=await _disks(agent.url),
        kubernetes=_kubernetes(subject) if subject.in_cluster else None,
        is_root=os.geteuid() == 0,
        udev_serves=udev.serves(),
    )


# --- the machine ---


def _modules(release: str) -> Mapping[str, ModuleState]:
    folder = Path("/lib/modules") / release
    built_in, loadable = _text(folder / "modules.builtin"), _text(folder / "modules.dep")

    def state(name: str) -> ModuleState:
        if built_in is not None and name in _module_names(built_in):
            return ModuleState.BUILT_IN
        if (Path("/sys/module") / name).exists():
            return ModuleState.LOADED
        if loadable is None:
            return ModuleState.UNKNOWN
        return ModuleState.LOADABLE if name in _module_names(loadable) else ModuleState.MISSING

    return {name: state(name) for name in MODULES}


def _module_names(listing: str) -> set[str]:
    """Of lines like `kernel/drivers/nvme/host/nvme-tcp.ko.xz: ...`; the kernel makes no difference of - and _."""
    files = (line.partition(":")[0].rpartition("/")[2] for line in listing.splitlines())
    return {file.partition(".ko")[0].replace("-", "_") for file in files}


def _cpu_flags() -> frozenset[str]:
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return frozenset()


def _hugepages() -> Hugepages:
    folder = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    limit = None
    for group in ("kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice"):
        told = _text(Path("/sys/fs/cgroup") / group / "hugetlb.2MB.max")
        if told is not None and told.isdigit():
            limit = int(told)
    return Hugepages(_number(folder / "nr_hugepages"), _number(folder / "free_hugepages"), limit)


def _folder(path: Path) -> FolderFacts:
    known = path
    while not known.exists() and known != known.parent:
        known = known.parent
    try:
        space = os.statvfs(known)
    except OSError:
        return FolderFacts(path, exists=False, writable=False, free_bytes=0)
    free_bytes = space.f_bavail * space.f_frsize
    return FolderFacts(path, path.exists(), _filesystem(known), os.access(known, os.W_OK | os.X_OK), free_bytes)


def _filesystem(path: Path) -> str:
    """Type of the filesystem that `path` is in, by the longest mount point above it (the last one covers others)."""
    real, best, kind = path.resolve(), -1, ""
    for each in psutil.disk_partitions(all=True):
        if real.is_relative_to(each.mountpoint) and len(each.mountpoint) >= best:
            best, kind = len(each.mountpoint), each.fstype
    return kind


# --- programs ---


async def _programs() -> Mapping[str, Program]:
    names = (*REQUIRED, *FOR_VOLUMES, *OPTIONAL)
    return dict(zip(names, await asyncio.gather(*(_program(name) for name in names)), strict=True))


async def _program(name: str) -> Program:
    path = process.find_program(name)
    if path is None:
        return Program()
    argument = _VERSION_ARGUMENTS.get(name)
    if argument is None:
        return Program(path)
    try:
        done = await process.run([name, argument], timeout_s=VERSION_TIMEOUT_S, ok_codes=range(256))
    except QuarryError:
        return Program(path)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return Program(path, lines[0][:100] if lines else "")


# --- what runs ---


async def _target(subject: Subject) -> TargetFacts:
    if subject.spdk_socket is not None:
        return await _target_at(subject.spdk_socket)
    own = subject.state_dir / "target.sock"
    embedded = await _target_at(own) if await asyncio.to_thread(own.is_socket) else TargetFacts()
    return embedded if embedded.answers else TargetFacts()


async def _target_at(path: Path) -> TargetFacts:
    try:
        async with Client(path, call_timeout_s=TARGET_TIMEOUT_S) as rpc:
            await rpc.wait_connected(TARGET_TIMEOUT_S)
            facts = TargetFacts(path, await app.version(rpc), rpc.peer_pid)
            with contextlib.suppress(QuarryError):  # one that does not tell is no worse for it
                target = await nature.learn(rpc)
                facts = replace(facts, nature=target, activity=await activity.watch(rpc))
            return facts
    except QuarryError as error:
        return TargetFacts(path, trouble=str(error))


def _port(number: int) -> PortFacts:
    try:
        listening = [
            each
            for each in psutil.net_connections(kind="tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == number
        ]
    except (psutil.Error, OSError):
        return PortFacts(number, _is_taken(number))
    if not listening:
        return PortFacts(number)
    pid = next((each.pid for each in listening if each.pid is not None), None)
    return PortFacts(number, True, pid, _program_of(pid))


def _is_taken(number: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", number)) == 0


def _program_of(pid: int | None) -> str:
    try:
        return psutil.Process(pid).name() if pid is not None else ""
    except psutil.Error:
        return "a program that has ended"


async def _agent(state_dir: Path) -> AgentFacts:
    file = state_dir / ENDPOINT_FILE
    try:
        url = str(msgspec.json.decode(file.read_bytes())["url"])
    except FileNotFoundError:
        return AgentFacts(trouble=f"none serves HTTP on {state_dir}")
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
        return AgentFacts(trouble=f"{file} cannot be read: {error}")
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=AGENT_TIMEOUT_S)) as session,
            session.get(f"{url}/readyz") as answer,
        ):
            told = msgspec.json.decode(await answer.read(), type=_Readiness)
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
        return AgentFacts(url, trouble=f"does not answer at {url}: {error or 'no answer in time'}")
    return AgentFacts(url, told.ready, tuple(each.get("message", "") for each in told.reasons))


async def _disks(url: str) -> tuple[DiskFacts, ...]:
    """Those of which the agent says whether they keep back what was synced."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=AGENT_TIMEOUT_S)) as session,
            session.get(f"{url}/v1/disks") as answer,
        ):
            told = msgspec.json.decode(await answer.read(), type=_Disks)
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, ValueError):
        return ()
    return tuple(
        DiskFacts(disk.status.path, each.status == ConditionStatus.TRUE, each.message)
        for disk in told.items
        for each in disk.status.conditions
        if each.type == POWER_LOSS
    )


def _kubernetes(subject: Subject) -> KubernetesFacts:
    facts = KubernetesFacts(subject.csi_socket)
    registration = facts.registration_socket
    return KubernetesFacts(
        subject.csi_socket,
        subject.csi_socket.is_socket(),
        registration,
        registration.is_socket(),
        os.access(registration.parent, os.R_OK | os.X_OK),
    )


# --- reading ---


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else 0


def _count(folder: Path) -> int:
    try:
        return len(list(folder.iterdir()))
    except OSError:
        return 0
