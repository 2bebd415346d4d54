"""The way back on a node: unmounted, and the device let go. Each step tolerates that the ones before never happened."""

from __future__ import annotations

from collections.abc import Mapping

from agent.errors import FailedPrecondition
from agent.host import device as devices
from agent.host import mount
from agent.host.paths import CheckedPath
from agent.model import Frontend, Volume
from agent.volumes.attach import held
from agent.volumes.attach.freezing import Freezer
from agent.volumes.attach.frontends import FrontendDriver
from agent.volumes.attach.places import Places, Use


class Removal:
    """Callers let one operation at a volume, and at a path, at a time."""

    def __init__(self, frontends: Mapping[Frontend, FrontendDriver], freezer: Freezer, places: Places) -> None:
        self._frontends = frontends
        self._freezer = freezer
        self._places = places

    async def unpublish(self, volume_id: str, path: CheckedPath) -> None:
        """Unmount and remove. FailedPrecondition while a process uses it, or when it is not this volume's."""

        async def own(found: mount.Mount) -> None:
            await self._places.require_own(path, found, volume_id, Use.PUBLISHED)

        if mount.at(path.real) is not None:
            devices.require_admin()
            await mount.ensure_unmounted(path, own)
        try:
            path.remove()
        except OSError as error:
            raise FailedPrecondition(f"{path} cannot be removed: {error.strerror}") from error
        await self._places.forget(path)

    async def unstage(self, volume_id: str, volume: Volume | None, path: CheckedPath, *, published: bool) -> None:
        """Unmount and detach. `volume`: None when its record is gone; `published`: to this node, still.

        FailedPrecondition while it is in use at another path, or `path` by something else; Unavailable while somebody
        has its device.
        """
        drivers = list(self._frontends.values())
        if volume is not None:
            drivers = [each for frontend, each in self._frontends.items() if frontend is volume.spec.frontend]
        staged = mount.at(path.real)

        async def own(found: mount.Mount) -> None:
            await self._places.require_own(path, found, volume_id, Use.STAGED)

        if staged is not None:
            await own(staged)
        found = [await each.find(volume) if volume is not None else None for each in drivers]
        found += [await each.left(volume_id) for each, known in zip(drivers, list(found), strict=True) if known is None]
        attached = [each for each in found if each is not None]
        if staged is not None or attached:
            devices.require_admin()
        uses = [use for device in attached for use in mount.uses(device)]
        if not attached and staged is not None:
            uses = mount.uses_of(staged.device)
        elsewhere = sorted({str(use.target) for use in uses if use.target != path.real})
        if elsewhere:
            raise FailedPrecondition(f"volume {volume_id} is still in use at {', '.join(elsewhere)}")
        if not published:
            # Unpublished first (a forced detach): what was not written yet never will be, so nothing waits for it.
            for driver in drivers:
                await driver.abandon(volume_id)
        await self._freezer.thaw(volume_id)
        await mount.ensure_unmounted(path, own)
        await self._places.forget(path)
        for device in attached:
            await held.ensure_free(volume_id, device)
        for driver in drivers:
            await driver.detach(volume_id, volume)
        await self._freezer.forget(volume_id)
