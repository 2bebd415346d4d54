"""A device that no mount shows and that somebody has all the same: who, and what can be done about it."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from agent.errors import QuarryError, Unavailable
from agent.host import blkid, holders, mount

RELEASE_TIMEOUT_S = 5.0
"""How long a filesystem may take to end once it is thawed, before the caller has to ask again."""
_POLL_S = 0.05

log = logging.getLogger(__name__)


async def ensure_free(volume_id: str, device: Path) -> None:
    """Nobody has the device when this returns; detaching it loses nothing.

    Unavailable, with the remedy where somebody has it: a program, another mount namespace, a filesystem that is still
    being written back. One that was frozen when its last mount was taken away is thawed, and ends by that.
    """
    if not await _is_held(device):
        return
    if told := await asyncio.to_thread(holders.describe, device):
        raise Unavailable(f"volume {volume_id}: {told}; then repeat the call")
    if await thawed(volume_id, device):
        deadline = time.monotonic() + RELEASE_TIMEOUT_S
        while await _is_held(device):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(_POLL_S)
        else:
            return
    raise Unavailable(f"volume {volume_id} is still being written back; repeat the call")


async def thawed(volume_id: str, device: Path) -> bool:
    """Whether a filesystem lived on without a mount since it was frozen, and is thawed now."""
    try:
        found = await mount.thaw_unseen(device)
    except QuarryError as error:
        log.warning("volume %s: whether its filesystem is frozen cannot be told: %s", volume_id, error)
        return False
    if found:
        log.warning("volume %s had been left frozen without a mount: thawed", volume_id)
    return found


async def _is_held(device: Path) -> bool:
    return _exists(device) and await blkid.is_held(device)


def _exists(device: Path) -> bool:
    return device.exists()
