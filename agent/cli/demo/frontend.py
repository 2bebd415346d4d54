"""Which frontend this machine can show the demo with, and why not a better one."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.errors import CommandFailed, DeadlineExceeded, FailedPrecondition, QuarryError, Unavailable
from agent.host import process

USER = "user"
_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE = 21, 24
"""Bit numbers in capabilities(7): needed to mount; needed to grow ext4 while it is mounted."""
_TOOLS = {"ext4": ("mkfs.ext4", "resize2fs"), "xfs": ("mkfs.xfs", "xfs_growfs")}
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Choice:
    """`fs_type` is for kernel frontends. `reason` says why not a better one; empty when it is what was wanted."""

    frontend: str
    fs_type: str = ""
    reason: str = ""


async def choose(wanted: str, folder: Path, embedded: bool) -> Choice:
    """The frontend for `wanted` (auto, loop, nvme-tcp, user). Raises FailedPrecondition when that cannot be.

    `auto` prefers a kernel block device: loop, which every Linux has but only the `embedded` target can use, then
    nvme-tcp; without either, user space.
    """
    if wanted == USER:
        return Choice(USER)
    fs_type, obstacle = _filesystem()
    reasons = []
    for frontend in ("loop", "nvme-tcp") if wanted == "auto" else (wanted,):
        reason = obstacle or await (_loop_obstacle(folder, embedded) if frontend == "loop" else _nvme_obstacle())
        if not reason:
            return Choice(frontend, fs_type)
        reasons.append(reason)
    if wanted == "auto":
        return Choice(USER, reason="; ".join(dict.fromkeys(reasons)))
    raise FailedPrecondition(f"--frontend {wanted} cannot be used here: {reasons[0]}; --frontend user works anywhere")


def _filesystem() -> tuple[str, str]:
    """A filesystem that can be made, mounted and grown here, or why there is none."""
    if os.geteuid() != 0:
        return "", "not root"
    status = Path("/proc/self/status").read_text()
    capabilities = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    if not capabilities >> _CAP_SYS_ADMIN & 1:
        return "", "root may not mount here (no CAP_SYS_ADMIN, as in most containers)"
    reasons = []
    for fs_type, tools in _TOOLS.items():
        missing = [tool for tool in ("umount", "blkid", *tools) if process.find_program(tool) is None]
        if missing:
            reasons.append(f"no {fs_type}: not installed: {', '.join(missing)}")
        elif fs_type == "ext4" and not capabilities >> _CAP_SYS_RESOURCE & 1:
            reasons.append("ext4 cannot grow while mounted: no CAP_SYS_RESOURCE")
        else:
            return fs_type, ""
    return "", "; ".join(reasons)


async def _loop_obstacle(folder: Path, embedded: bool) -> str:
    """Tries it: a container may have /dev/loop-control and still not be allowed to use it."""
    if not embedded:
        return "SPDK has no file behind a volume that a loop device could be put on"
    trial = folder / "trial.img"
    with trial.open("wb") as file:
        file.truncate(1 << 20)
    device = ""
    try:
        done = await process.run(["losetup", "--find", "--show", str(trial)], timeout_s=_TIMEOUT_S)
        device = done.stdout.strip()
        os.close(os.open(device, os.O_RDONLY))  # there may be no node for it in this /dev
    except (CommandFailed, DeadlineExceeded, FailedPrecondition, Unavailable, OSError) as error:
        return f"no working loop devices ({error})"
    finally:
        if device:
            with suppress(QuarryError):  # what stays is found again when the folder is swept
                await process.run(["losetup", "--detach", device], timeout_s=_TIMEOUT_S)
        trial.unlink()
    return ""


async def _nvme_obstacle() -> str:
    if not _has_fabrics() and process.find_program("modprobe"):
        with suppress(QuarryError):  # a kernel without it: the device stays absent
            await process.run(["modprobe", "nvme-tcp"], timeout_s=_TIMEOUT_S)
    return "" if _has_fabrics() else "this kernel has no NVMe/TCP (module nvme-tcp)"


def _has_fabrics() -> bool:
    return Path("/dev/nvme-fabrics").exists()
