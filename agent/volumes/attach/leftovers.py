"""What an earlier run of the agent left on this machine when it was killed: frozen filesystems, devices, notes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from agent.errors import Busy, QuarryError
from agent.host import mount
from agent.model import Frontend, Volume
from agent.tasks.guard import VolumeGuard
from agent.volumes.attach import held
from agent.volumes.attach.formatting import Formatter
from agent.volumes.attach.freezing import Freezer
from agent.volumes.attach.frontends import FrontendDriver

log = logging.getLogger(__name__)

THAW_RETRY_MIN_S, THAW_RETRY_MAX_S = 0.1, 10.0


class Leftovers:
    """Takes them away, one volume at a time under its guard."""

    def __init__(
        self, frontends: Mapping[Frontend, FrontendDriver], formatter: Formatter, freezer: Freezer, guard: VolumeGuard
    ) -> None:
        self._frontends = frontends
        self._formatter = formatter
        self._freezer = freezer
        self._guard = guard

    async def thaw(self) -> None:
        """Thaw what was frozen; returns when all is, trying again."""
        left, delay = self._freezer.noted(), THAW_RETRY_MIN_S
        while left:
            failed = []
            for name in left:
                try:
                    async with self._guard.hold(name):
                        await self._freezer.thaw(name)
                except QuarryError as error:
                    log.warning("volume %s may still be frozen: %s", name, error)
                    failed.append(name)
            left = failed
            await asyncio.sleep(delay if left else 0)
            delay = min(2 * delay, THAW_RETRY_MAX_S)

    async def release(self, volumes: Sequence[Volume], wanted: AbstractSet[str]) -> list[str]:
        """Detach the devices of volumes that are not `wanted` here and not in use, and drop notes of others.

        `volumes`: all that exist. Returns the ids. What is still mounted stays: its data may not be written yet.
        """
        by_name = {volume.meta.name: volume for volume in volumes}
        released = []
        for driver in self._frontends.values():
            for name in set(await driver.known()) - wanted:
                volume = by_name.get(name)
                try:
                    async with self._guard.hold(name):
                        if await self._released(driver, name, volume):
                            released.append(name)
                except QuarryError as error:
                    log.warning("the device of volume %s is left attached: %s", name, error)
        try:
            await self._formatter.forget_all_but(by_name)
        except QuarryError as error:
            log.warning("notes of deleted volumes stay: %s", error)
        return sorted(released)

    async def _released(self, driver: FrontendDriver, name: str, volume: Volume | None) -> bool:
        """Detached; False while it is mounted."""
        device = (await driver.find(volume) if volume else None) or await driver.left(name)
        if device is not None and mount.uses(device):
            return False
        try:
            await driver.detach(name, volume)
        except Busy:
            # A loop device that a filesystem has which no mount shows. Elsewhere detaching ends what waits: not asked.
            if device is None or not await held.thawed(name, device):
                raise
            await driver.detach(name, volume)
        return True
