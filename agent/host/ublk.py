"""The kernel's ublk devices: /dev/ublkb<id>, their state, and the removal of those whose server died.

Ids are reused by the kernel: `identity` tells whether a device is still the one it was.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from agent.errors import FailedPrecondition
from agent.host import process, ublk_control

CONTROL_TIMEOUT_S = 20.0
CONTROL = ublk_control.CONTROL
_CLASS = Path("/sys/class/ublk-char")


class State(IntEnum):
    """UBLK_S_DEV_* of linux/ublk_cmd.h."""

    DEAD = 0
    """There is no block device (any more)."""
    LIVE = 1
    QUIESCED = 2
    """Its server died; what is written and read waits for another one."""
    FAIL_IO = 3


@dataclass(frozen=True, slots=True)
class Info:
    state: State
    served: bool
    """A process has it open, be it dying."""


def is_available() -> bool:
    return Path(CONTROL).exists()


def require() -> None:
    """FailedPrecondition unless this kernel has ublk."""
    if not is_available():
        raise FailedPrecondition(
            f"this kernel has no ublk ({CONTROL} is absent): `modprobe ublk_drv` (Linux 6.4 or newer), "
            "or use the frontend nvme-tcp"
        )


def path(ublk_id: int) -> Path:
    return Path(f"/dev/ublkb{ublk_id}")


def identity(ublk_id: int) -> str:
    """What no other device of that id has, before it or after; "" when there is none.

    The inode of its directory in sysfs, which the kernel (kernfs) numbers without using a number again. `diskseq` would
    be gone with the block device, while its number is still taken.
    """
    try:
        return str((_CLASS / f"ublkc{ublk_id}").stat().st_ino)
    except OSError:
        return ""


def used() -> set[int]:
    """The ids that the kernel has devices of, whoever serves them."""
    try:
        return {int(entry.name.removeprefix("ublkc")) for entry in _CLASS.iterdir()}
    except FileNotFoundError:
        return set()


async def info(ublk_id: int) -> Info | None:
    """What the driver says of a device, None when there is none."""
    done = await process.run(_argv("info", ublk_id), timeout_s=CONTROL_TIMEOUT_S, ok_codes=(0, ublk_control.ABSENT))
    if done.code == ublk_control.ABSENT:
        return None
    found = json.loads(done.stdout)
    return Info(State(found["state"]), found["served"])


async def refuse_discards(ublk_id: int) -> None:
    """Let the kernel refuse to discard blocks of a live device (queue/discard_max_bytes, Documentation/block).

    Done by a child that can be given up: the kernel waits for what is being written and read.
    """
    limit = Path(f"/sys/class/block/{path(ublk_id).name}/queue/discard_max_bytes")
    if await asyncio.to_thread(limit.read_text) != "0\n":
        await process.run(["tee", str(limit)], input=b"0", timeout_s=CONTROL_TIMEOUT_S)


async def stop(ublk_id: int) -> None:
    """End a block device that nobody serves, though a filesystem may have it: what waits for it fails."""
    await process.run(_argv("stop", ublk_id), timeout_s=CONTROL_TIMEOUT_S, ok_codes=(0, ublk_control.ABSENT))


async def delete(ublk_id: int) -> None:
    """Remove a device that nobody serves or has open; absent is fine. DeadlineExceeded when somebody has."""
    await process.run(_argv("delete", ublk_id), timeout_s=CONTROL_TIMEOUT_S, ok_codes=(0, ublk_control.ABSENT))


def _argv(action: str, ublk_id: int) -> list[str]:
    return [sys.executable, "-I", "-S", ublk_control.__file__, action, str(ublk_id)]
