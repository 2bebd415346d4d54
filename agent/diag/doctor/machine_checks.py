"""Checks of the machine itself: kernel, CPU, memory, programs, clock. Pure."""

from __future__ import annotations

import re
import time

from agent.diag.doctor.facts import Facts, ModuleState
from agent.diag.doctor.findings import Finding, failed, passed, warned
from agent.host.process import PACKAGES

KERNEL_MIN = (6, 1)
"""The oldest kernel that the tests run on (Debian 12)."""
KERNEL_UBLK_RECOVERY = (6, 15)
"""Older kernels can crash when a ublk server is killed under load (docs/frontends.md)."""

_PRESENT = (ModuleState.LOADED, ModuleState.BUILT_IN)
_MIB, _GIB = 1 << 20, 1 << 30
MEMORY_MIN_BYTES = 2 * _GIB
AVAILABLE_MIN_BYTES = 512 * _MIB

REQUIRED = ("setpriv", "blkid")
FOR_VOLUMES = ("mkfs.ext4", "resize2fs", "mkfs.xfs", "xfs_growfs")
OPTIONAL = ("mkfs.btrfs", "nvme", "smartctl", "ledctl", "losetup")

_WANTED_FLAGS = {"x86_64": ("sse4_2", "pclmulqdq"), "aarch64": ("crc32", "aes")}


def kernel(facts: Facts) -> list[Finding]:
    version = version_of(facts.kernel)
    oldest = ".".join(map(str, KERNEL_MIN))
    if version is None:
        return [
            warned("kernel", f"{facts.kernel!r} is no Linux version that can be read", f"use Linux {oldest} or newer")
        ]
    if version < KERNEL_MIN:
        return [failed("kernel", f"Linux {facts.kernel}", f"use Linux {oldest} or newer")]
    return [passed("kernel", f"Linux {facts.kernel}")]


def nvme_tcp(facts: Facts) -> list[Finding]:
    """The default frontend."""
    state = facts.modules.get("nvme_tcp", ModuleState.UNKNOWN)
    if state in _PRESENT:
        return [passed("module nvme-tcp", state)]
    if facts.target.socket is None and state is not ModuleState.UNKNOWN:
        remedy = (
            "for the frontend nvme-tcp: `modprobe nvme-tcp`; the embedded target's volumes come as loop devices too"
        )
        return [warned("module nvme-tcp", state, remedy)]
    if state is ModuleState.LOADABLE:
        remedy = "`modprobe nvme-tcp`, and `echo nvme-tcp > /etc/modules-load.d/quarry.conf` for the next boot"
        return [failed("module nvme-tcp", "loadable, not loaded: the frontend nvme-tcp cannot be used", remedy)]
    if state is ModuleState.UNKNOWN:
        remedy = "on the machine itself: `modprobe nvme-tcp`; show /lib/modules to this container to have it checked"
        return [warned("module nvme-tcp", "not loaded, and whether it can be is not visible here", remedy)]
    remedy = "install the kernel's extra modules (linux-modules-extra-$(uname -r) on Ubuntu), or use another kernel"
    return [failed("module nvme-tcp", "this kernel has none: the frontend nvme-tcp cannot be used", remedy)]


def ublk(facts: Facts) -> list[Finding]:
    """The frontend for volumes of this machine; nobody needs it."""
    state, version = facts.modules.get("ublk_drv", ModuleState.UNKNOWN), version_of(facts.kernel)
    if state not in _PRESENT:
        remedy = "only for the frontend ublk: `modprobe ublk_drv` (Linux 6.4 or newer)"
        return [warned("module ublk_drv", state, remedy)]
    if version is not None and version < KERNEL_UBLK_RECOVERY:
        wanted = ".".join(map(str, KERNEL_UBLK_RECOVERY))
        found = f"{state}; Linux {facts.kernel} can crash when the target is killed under load"
        return [warned("module ublk_drv", found, f"use Linux {wanted} or newer, or the frontend nvme-tcp")]
    return [passed("module ublk_drv", state)]


def loop(facts: Facts) -> list[Finding]:
    state = facts.modules.get("loop", ModuleState.UNKNOWN)
    if state in _PRESENT or state is ModuleState.LOADABLE:
        return [passed("module loop", state)]
    return [warned("module loop", state, "only for the embedded target: `modprobe loop`")]


def vfio(facts: Facts) -> list[Finding]:
    """For disks with the target's own driver."""
    state = facts.modules.get("vfio_pci", ModuleState.UNKNOWN)
    remedy = "only for `quarry disks bind`: "
    found = [
        passed("module vfio-pci", state)
        if state in (*_PRESENT, ModuleState.LOADABLE)
        else warned("module vfio-pci", state, remedy + "`modprobe vfio-pci`")
    ]
    if facts.iommu_groups:
        return [*found, passed("IOMMU", f"on, {facts.iommu_groups} groups")]
    switch_on = "switch it on in the firmware and boot with intel_iommu=on or amd_iommu=on"
    return [*found, warned("IOMMU", "off", f"{remedy}{switch_on}; or bind with --driver uio_pci_generic")]


def cpu(facts: Facts) -> list[Finding]:
    wanted = _WANTED_FLAGS.get(facts.architecture, ())
    missing = [flag for flag in wanted if flag not in facts.cpu_flags]
    found: list[Finding] = []
    if not wanted:
        found.append(warned("CPU", f"{facts.architecture}: SPDK is not known to run on it", "use x86_64 or aarch64"))
    elif missing and facts.cpu_flags:
        remedy = "use a newer CPU; in a virtual machine pass the host's through (QEMU: -cpu host)"
        found.append(failed("CPU", f"without {', '.join(missing)}, which builds of SPDK use", remedy))
    elif missing:
        found.append(warned("CPU", "its features are not visible here", "look at `flags` in /proc/cpuinfo"))
    else:
        found.append(passed("CPU", f"{facts.architecture} with {', '.join(wanted)}"))
    if facts.cpus < 2:
        remedy = "give the machine more: a target in polling mode keeps one busy for itself"
        return [*found, warned("CPUs", str(facts.cpus), remedy)]
    return [*found, passed("CPUs", str(facts.cpus))]


def memory(facts: Facts) -> list[Finding]:
    text = f"{facts.memory_bytes / _GIB:.1f} GiB, {facts.memory_available_bytes / _GIB:.1f} GiB available"
    if facts.memory_bytes < MEMORY_MIN_BYTES or facts.memory_available_bytes < AVAILABLE_MIN_BYTES:
        return [warned("memory", text, "have 2 GiB, 0.5 GiB of it available: for the target's pages and the agent")]
    return [passed("memory", text)]


def hugepages(facts: Facts) -> list[Finding]:
    """SPDK's memory. A target that answers has what it needs."""
    pages = facts.hugepages
    text = f"{pages.total} of 2 MiB, {pages.free} free"
    reserve = "`echo vm.nr_hugepages=1024 > /etc/sysctl.d/90-quarry.conf && sysctl --system`"
    found = [passed("hugepages", text)]
    if not pages.total:
        if facts.target.answers or facts.target.socket is None:
            why = (
                "the target runs without"
                if facts.target.answers
                else "no SPDK target was named; the embedded needs none"
            )
            return [warned("hugepages", f"none; {why}", f"for SPDK at full speed: {reserve}")]
        return [failed("hugepages", "none: SPDK does not start (unless with --no-huge)", reserve)]
    if not pages.free and not facts.target.answers:
        found = [failed("hugepages", f"{text}: others have them all", f"reserve more: {reserve} with a larger number")]
    if facts.kubernetes is not None and pages.pods_limit_bytes == 0:
        found.append(
            failed(
                "hugepages of kubelet",
                "kubelet counts none: it started before they were reserved, so no Pod gets any",
                "restart kubelet (`systemctl restart kubelet`), then look at hugepages-2Mi of `kubectl describe node`",
            )
        )
    return found


def udev(facts: Facts) -> list[Finding]:
    """Links and properties of disks come from its daemon; changes are seen by the kernel's events without it."""
    if facts.udev_serves:
        return [passed("udev", "its daemon serves")]
    remedy = "`systemctl start systemd-udevd`; in a container show /run/udev of the machine"
    return [warned("udev", "no daemon answers at /run/udev/control: of disks only what the kernel tells", remedy)]


def programs(facts: Facts) -> list[Finding]:
    found: list[Finding] = []
    for names, level in ((REQUIRED, failed), (FOR_VOLUMES, failed), (OPTIONAL, warned)):
        missing = [name for name in names if not facts.programs.get(name) or not facts.programs[name].path]
        if missing:
            packages = " ".join(sorted({PACKAGES.get(name, name) for name in missing}))
            what = "optional programs" if names is OPTIONAL else "programs"
            found.append(
                level(what, f"not on this machine: {', '.join(missing)}", f"install {packages} (Debian's names)")
            )
    nvme = facts.programs.get("nvme")
    if nvme is not None and nvme.path:
        number = re.search(r"(\d+)\.\d+", nvme.version)
        if number is not None and int(number[1]) < 2:
            found.append(warned("nvme-cli", nvme.version, "use nvme-cli 2 or newer, which the tests run with"))
    if found:
        return found
    return [passed("programs", ", ".join(each.version or name for name, each in facts.programs.items() if each.path))]


def clock(facts: Facts) -> list[Finding]:
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(facts.now))
    if facts.now < 1_735_689_600:  # 2025
        return [failed("clock", f"{shown}: certificates and Leases will be refused", "set the clock, and run chrony")]
    if facts.clock_synchronized:
        return [passed("clock", f"{shown}, synchronized")]
    state = (
        "not synchronized" if facts.clock_synchronized is False else "whether it is synchronized is not visible here"
    )
    return [
        warned(
            "clock", f"{shown}, {state}", "run chrony or systemd-timesyncd: times of snapshots and Leases come from it"
        )
    ]


def version_of(release: str) -> tuple[int, int] | None:
    """(6, 12) of `6.12.3-amd64`."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else None
