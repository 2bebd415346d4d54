"""The checks of `quarry doctor`: what they say to facts, and the command on this very machine."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.diag.doctor.checks import examine
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
from agent.diag.doctor.findings import Finding, worst
from agent.diag.doctor.machine_checks import FOR_VOLUMES, OPTIONAL, REQUIRED
from tests.crash.machine import Machine, Patient

GIB = 1 << 30
SOCKET = Path("/run/spdk.sock")
CSI = KubernetesFacts(Path("/csi.sock"), True, Path("/registry/reg.sock"), True, True)

GOOD = Facts(
    kernel="6.17.3-amd64",
    architecture="x86_64",
    modules=dict.fromkeys(("nvme_tcp", "ublk_drv", "loop", "vfio_pci"), ModuleState.LOADED),
    cpu_flags=frozenset({"sse4_2", "pclmulqdq"}),
    cpus=8,
    memory_bytes=64 * GIB,
    memory_available_bytes=32 * GIB,
    hugepages=Hugepages(1024, 512, None),
    iommu_groups=20,
    programs={name: Program(f"/usr/sbin/{name}") for name in (*REQUIRED, *FOR_VOLUMES, *OPTIONAL)}
    | {"nvme": Program("/usr/sbin/nvme", "nvme version 2.11 (git 2.11)")},
    target=TargetFacts(SOCKET, "SPDK v26.05 git sha1 d519b163cb", 77),
    port=PortFacts(4420, True, 77, "reactor_0"),
    host=HostIdentity("nqn.2014-08.org.nvmexpress:uuid:97deb035-8342-456d-8ecd-7e867a1d9d35"),
    state_dir=FolderFacts(filesystem="ext4"),
    clock_synchronized=True,
    now=1_795_000_000.0,
    agent=AgentFacts("http://127.0.0.1:9810", True),
    disks=(DiskFacts("/dev/nvme0n1", True, "its volatile write cache is switched off"),),
    kubernetes=CSI,
)
"""A machine on which nothing is wrong."""


def test_nothing_is_wrong() -> None:
    findings = examine(GOOD)
    assert [each for each in findings if each.level != "pass"] == []
    assert all(each.found and not each.remedy for each in findings)
    assert len({each.check for each in findings}) == len(findings) >= 16


def test_a_machine_for_the_embedded_target_before_its_first_agent_has_no_failure() -> None:
    """What the embedded target does without, and an agent that nobody has started yet, is nothing to fail for."""
    new = replace(
        GOOD,
        target=TargetFacts(),
        port=PortFacts(4420, False),
        state_dir=FolderFacts(exists=False),
        agent=AgentFacts(trouble="none serves HTTP"),
        kubernetes=None,
        hugepages=Hugepages(),
    )
    for machine in (new, replace(new, modules=modules(nvme_tcp=ModuleState.MISSING), programs=without("nvme"))):
        findings = examine(machine)
        assert worst(findings).value == "warn", findings
        assert [each.level for each in findings if each.check == "agent"] == ["warn"]
    ran = examine(replace(new, state_dir=FolderFacts()))
    assert [each.level for each in ran if each.check == "agent"] == ["fail"], "one that has run here is down"


def modules(**states: ModuleState) -> dict[str, ModuleState]:
    return {**GOOD.modules, **states}


def without(*names: str) -> dict[str, Program]:
    return {name: Program() if name in names else program for name, program in GOOD.programs.items()}


AWAY = TargetFacts(SOCKET, trouble="nobody listens")

# What is wrong with the machine, the check that says so, how bad, before the agent starts (None: not checked), and a
# word of what is said.
CASES: list[tuple[dict[str, Any], str, str, str | None, str]] = [
    ({"kernel": "5.15.0-91-generic"}, "kernel", "fail", "fail", "6.1"),
    ({"kernel": "6.0.19"}, "kernel", "fail", "fail", "6.1"),
    ({"kernel": "strange"}, "kernel", "warn", "warn", "strange"),
    ({"cpu_flags": frozenset({"sse4_2"})}, "CPU", "fail", "fail", "pclmulqdq"),
    ({"cpu_flags": frozenset()}, "CPU", "warn", "warn", "/proc/cpuinfo"),
    ({"architecture": "riscv64"}, "CPU", "warn", "warn", "riscv64"),
    ({"cpus": 1}, "CPUs", "warn", "warn", "polling"),
    ({"memory_bytes": GIB}, "memory", "warn", "warn", "2 GiB"),
    ({"memory_available_bytes": GIB // 4}, "memory", "warn", "warn", "0.2 GiB available"),
    ({"hugepages": Hugepages()}, "hugepages", "warn", "warn", "vm.nr_hugepages"),
    ({"hugepages": Hugepages(), "target": AWAY}, "hugepages", "fail", "warn", "vm.nr_hugepages"),
    ({"hugepages": Hugepages(), "target": TargetFacts()}, "hugepages", "warn", "warn", "embedded"),
    ({"hugepages": Hugepages(512, 0), "target": AWAY}, "hugepages", "fail", "warn", "others have them"),
    ({"hugepages": Hugepages(512, 9, 0)}, "hugepages of kubelet", "fail", "warn", "restart kubelet"),
    ({"modules": modules(nvme_tcp=ModuleState.LOADABLE)}, "module nvme-tcp", "fail", "warn", "modprobe nvme-tcp"),
    ({"modules": modules(nvme_tcp=ModuleState.MISSING)}, "module nvme-tcp", "fail", "warn", "linux-modules-extra"),
    ({"modules": {}}, "module nvme-tcp", "warn", "warn", "/lib/modules"),
    ({"modules": modules(ublk_drv=ModuleState.LOADABLE)}, "module ublk_drv", "warn", "warn", "modprobe ublk_drv"),
    ({"kernel": "6.12.9"}, "module ublk_drv", "warn", "warn", "6.15"),
    ({"modules": modules(loop=ModuleState.MISSING)}, "module loop", "warn", "warn", "embedded"),
    ({"modules": modules(vfio_pci=ModuleState.MISSING)}, "module vfio-pci", "warn", "warn", "quarry disks bind"),
    ({"iommu_groups": 0}, "IOMMU", "warn", "warn", "intel_iommu=on"),
    ({"programs": without("blkid")}, "programs", "fail", "fail", "util-linux"),
    ({"programs": without("mkfs.xfs")}, "programs", "fail", "fail", "xfsprogs"),
    ({"programs": without("smartctl")}, "optional programs", "warn", "warn", "smartmontools"),
    ({"programs": GOOD.programs | {"nvme": Program("/n", "nvme version 1.16")}}, "nvme-cli", "warn", "warn", "1.16"),
    ({"udev_serves": False}, "udev", "warn", "warn", "systemd-udevd"),
    ({"now": 12.0}, "clock", "fail", "fail", "1970"),
    ({"clock_synchronized": False}, "clock", "warn", "warn", "chrony"),
    ({"state_dir": FolderFacts(filesystem="nfs4")}, "state folder", "fail", "fail", "local disk"),
    ({"state_dir": FolderFacts(filesystem="tmpfs")}, "state folder", "warn", "warn", "reboot"),
    ({"state_dir": FolderFacts(writable=False)}, "state folder", "fail", "fail", "mount it writable"),
    ({"state_dir": FolderFacts(writable=False), "is_root": False}, "state folder", "fail", "fail", "root"),
    ({"state_dir": FolderFacts(exists=False, writable=False)}, "state folder", "warn", "warn", "does not exist"),
    ({"state_dir": FolderFacts(filesystem="xfs", free_bytes=1 << 20)}, "state folder", "fail", "fail", "make room"),
    ({"state_dir": FolderFacts(filesystem="xfs", free_bytes=99 << 20)}, "state folder", "warn", "warn", "99 MiB"),
    ({"host": HostIdentity("my host")}, "NVMe host", "warn", "warn", "gen-hostnqn"),
    ({"host": replace(GOOD.host, id="7")}, "NVMe host", "warn", "warn", "hostid"),
    ({"target": AWAY, "port": PortFacts()}, "target", "fail", "warn", "spdk_tgt -r /run/spdk.sock"),
    ({"target": TargetFacts(SOCKET, "SPDK v24.09", 77)}, "target", "warn", "warn", "v24.09"),
    ({"port": PortFacts(4420, True, 9, "nginx")}, "NVMe/TCP port", "fail", "warn", "nginx (pid 9)"),
    ({"port": PortFacts(4420, True, 9, "nginx"), "target": AWAY}, "NVMe/TCP port", "fail", "warn", "--nvmf-port"),
    ({"port": PortFacts(4420, True), "target": AWAY}, "NVMe/TCP port", "warn", "warn", "root"),
    ({"agent": AgentFacts(trouble="none serves HTTP")}, "agent", "fail", None, "none serves HTTP"),
    ({"agent": AgentFacts("http://x", False, ("the target is Starting",))}, "agent", "fail", None, "is Starting"),
    (
        {"disks": (*GOOD.disks, DiskFacts("/dev/sda", False, "its volatile write cache is on"))},
        "write caches",
        "warn",
        None,
        "/dev/sda: its volatile write cache is on",
    ),
    ({"kubernetes": replace(CSI, csi_socket_exists=False)}, "CSI socket", "fail", None, "/csi.sock"),
    ({"kubernetes": replace(CSI, registration_exists=False)}, "registration", "fail", None, "node-driver-registrar"),
    (
        {"kubernetes": replace(CSI, registration_exists=False, registry_visible=False)},
        "registration",
        "warn",
        None,
        "csinode",
    ),
]


@pytest.mark.parametrize(("wrong", "check", "level", "before", "words"), CASES)
def test_what_is_wrong_is_said_with_a_remedy(
    wrong: dict[str, Any], check: str, level: str, before: str | None, words: str
) -> None:
    facts = replace(GOOD, **wrong)
    finding = found(examine(facts), check)
    assert finding is not None and finding.level == level, finding
    assert finding.remedy and words in f"{finding.found} {finding.remedy}"
    early = found(examine(facts, before_agent=True), check)
    assert (early.level.value if early else None) == before


def found(findings: list[Finding], check: str) -> Finding | None:
    return next((each for each in findings if each.check == check), None)


@pytest.mark.parametrize(
    "fine",
    [
        {"port": PortFacts()},
        {"port": PortFacts(4420, True, None)},
        {"host": HostIdentity()},
        {"kubernetes": None},
        {"target": TargetFacts(), "port": PortFacts()},
        {"modules": modules(nvme_tcp=ModuleState.BUILT_IN)},
        {"architecture": "aarch64", "cpu_flags": frozenset({"crc32", "aes"})},
    ],
)
def test_what_is_as_good(fine: dict[str, Any]) -> None:
    assert worst(examine(replace(GOOD, **fine))) == "pass"


# --- the command ---------------------------------------------------------------------------------------------------


def doctor(*args: str, program: str = "quarry", **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).with_name(program)), "doctor", *args]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")}
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**clean, **environment})


def report(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    told = json.loads(done.stdout)
    levels = [each["level"] for each in told["checks"]]
    assert told["result"] == next(level for level in ("fail", "warn", "pass") if level in levels)
    assert done.returncode == (1 if told["result"] == "fail" else 0)
    return {each["check"]: each for each in told["checks"]}


async def test_on_this_machine(machine: Machine) -> None:
    """With a target and an agent that run, and after they have ended."""
    machine.start_agent()
    state_dir = machine.folder / "agent"
    args = ["--state-dir", str(state_dir), "--spdk-socket", str(machine.target.socket_path), "-o", "json"]
    args += ["--nvmf-port", str(machine.port)]
    csi = Patient(machine.endpoint)
    try:
        await csi.wait_ready()
        checks = report(await asyncio.to_thread(doctor, *args))
    finally:
        await csi.close()
    assert platform.release() in checks["kernel"]["found"]
    assert checks["CPUs"]["found"] == str(len(os.sched_getaffinity(0)))
    assert f"{psutil.virtual_memory().total / GIB:.1f} GiB" in checks["memory"]["found"]
    assert (checks["target"]["level"], "v26.05" in checks["target"]["found"]) == ("pass", True)
    assert checks["agent"]["level"] == "pass"
    assert checks["NVMe/TCP port"]["level"] == "pass"
    assert str(state_dir) in checks["state folder"]["found"]
    assert machine.stop_agent() == 0
    machine.target.kill()
    checks = report(await asyncio.to_thread(doctor, *args))
    assert [checks[name]["level"] for name in ("target", "agent")] == ["fail", "fail"]
    early = report(await asyncio.to_thread(doctor, *args, "--for", "node"))
    assert early["target"]["level"] == "warn" and "agent" not in early


def test_a_table_for_people(tmp_path: Path) -> None:
    done = doctor("--for", "node", "--state-dir", str(tmp_path))
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["pass", "kernel"] or platform.release().startswith(("4.", "5.", "6.0"))
    assert [word for word in lines[-1].replace(",", "").split() if not word.isdigit()] == ["pass", "warn", "fail"]
    assert done.stderr == ""


def test_under_kubernetes_the_places_of_the_manifest_are_looked_at(tmp_path: Path) -> None:
    checks = report(doctor("--state-dir", str(tmp_path), "-o", "json", KUBERNETES_SERVICE_HOST="10.0.0.1"))
    assert "/var/run/quarry/spdk.sock" in checks["target"]["found"]
    assert "/var/lib/kubelet/plugins/csi.quarry.storage/csi.sock" in checks["CSI socket"]["found"]
    assert "registration" in checks


@pytest.fixture
def kubectl(tmp_path: Path) -> Callable[[], dict[str, str]]:
    program = tmp_path / "kubectl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fake_kubectl.py")} "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return lambda: {"PATH": path, "QUARRY_TEST_LOG": str(tmp_path / "log")}


def test_a_node_of_the_cluster_is_checked_in_its_pod(kubectl: Callable[[], dict[str, str]]) -> None:
    args = ("--node", "worker-1", "--for", "node", "-o", "json")
    checks = report(doctor(*args, program="kubectl-quarry", **kubectl()))
    assert platform.release() in checks["kernel"]["found"]
    done = doctor("-o", "json", program="kubectl-quarry", **kubectl())
    assert (done.returncode, "--node" in done.stderr) == (2, True)
