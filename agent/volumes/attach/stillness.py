"""Keeping writers out while snapshots are cut: filesystems are frozen, hosts of several volumes are held back.

One volume: a frozen filesystem is consistent; a raw device is at a point in time because the target cuts it at one.
Several: once all filesystems are frozen, every listener of the volumes is made inaccessible (ANA). A host then keeps
new I/O back, without an error, until it is optimized again. I/O in flight is still carried out, which does no harm:
what a snapshot lacks was not complete when the pause began, so what depends on it is not sent before the pause ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from agent.errors import FailedPrecondition, RpcError, Unavailable
from agent.host import device as devices
from agent.host import mount, nvme_host, reflink
from agent.model import Frontend, Volume
from agent.spdk import nvmf
from agent.spdk.client import Rpc
from agent.volumes.attach.frontends import FrontendDriver
from agent.volumes.rules.names import volume_nqn
from agent.volumes.rules.plan import Listener

log = logging.getLogger(__name__)

Frozen = Callable[[Volume], AbstractAsyncContextManager[None]]


class Stillness:
    """`frozen` freezes a volume's filesystem if it is mounted here; `local_file` tells the file behind a volume."""

    def __init__(
        self,
        rpc: Rpc,
        listener: Listener,
        frozen: Frozen,
        frontends: Mapping[Frontend, FrontendDriver],
        local_file: Callable[[str], Awaitable[Path | None]],
        timeout_s: float,
    ) -> None:
        self._rpc = rpc
        self._listener = listener
        self._frozen = frozen
        self._frontends = dict(frontends)
        self._local_file = local_file
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def of(self, volume: Volume) -> AsyncIterator[None]:
        """For the block the volume can be cut. FailedPrecondition: it is written past the target, to a file that the
        filesystem below can copy only bit by bit."""
        async with self._frozen(volume):
            if volume.spec.frontend is Frontend.LOOP and await self._is_raw(volume):
                file = await self._local_file(volume.meta.name)
                if file is not None and not await asyncio.to_thread(reflink.supported, file.parent):
                    raise FailedPrecondition(
                        f"volume {volume.meta.name} is in use as a raw loop device, and the filesystem below {file} "
                        "has no reflinks (xfs and btrfs have): stop using it for the snapshot, or use nvme-tcp"
                    )
            yield

    @asynccontextmanager
    async def of_all(self, volumes: Sequence[Volume]) -> AsyncIterator[None]:
        """For the block, which may take `timeout_s`, nothing new is written to any of the volumes.

        Unavailable: it took longer, or a filesystem did not stand still. FailedPrecondition: one cannot be held back.
        """
        async with _all_of([self._frozen(volume) for volume in volumes]):
            exported = [each for each in volumes if each.spec.attachments and each.spec.frontend is Frontend.NVME_TCP]
            await self._require_holdable(volumes, exported)
            async with self._paused(exported):
                yield

    @asynccontextmanager
    async def _paused(self, volumes: Sequence[Volume]) -> AsyncIterator[None]:
        """Hosts are held back during the block, but for `timeout_s` at most; Unavailable after it when that was over.

        The block is not cut off: what it has asked of the target has to be known.
        """
        over = asyncio.Event()
        try:
            await asyncio.gather(*(self._set(each, nvmf.AnaState.INACCESSIBLE) for each in volumes))
        except BaseException:
            await self.resume(volumes)
            raise
        end = asyncio.create_task(self._resume_when(over, volumes), name="resume-hosts")
        try:
            yield
        finally:
            over.set()
            await asyncio.wait({end})
            failure = end.exception()
            if failure is not None:
                log.error("hosts of %s may still be held back: %s", [each.meta.name for each in volumes], failure)
        if end.result():
            raise Unavailable(f"the snapshots took longer than {self._timeout_s:g} s; repeat the call")

    async def _resume_when(self, over: asyncio.Event, volumes: Sequence[Volume]) -> bool:
        """Returns whether that took too long, so that it was not waited for."""
        late = False
        try:
            await asyncio.wait_for(over.wait(), self._timeout_s)
        except TimeoutError:
            late = True
        await self.resume(volumes)
        return late

    async def resume(self, volumes: Sequence[Volume]) -> None:
        """Let hosts go on, whatever came of the pause. Raises Unavailable when the target is away."""
        results = await asyncio.gather(
            *(self._set(each, nvmf.AnaState.OPTIMIZED) for each in volumes), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _set(self, volume: Volume, state: nvmf.AnaState) -> None:
        nqn = volume_nqn(volume.meta.name)
        try:
            await nvmf.set_ana_state(self._rpc, nqn, self._listener.address, self._listener.port, state)
        except RpcError:
            found = await nvmf.get_subsystem(self._rpc, nqn)
            if found is not None and found.listen_addresses:
                raise  # without a listener there is nobody to hold back

    async def _require_holdable(self, volumes: Sequence[Volume], exported: Sequence[Volume]) -> None:
        for volume in volumes:
            if volume.spec.frontend is not Frontend.NVME_TCP and await self._is_raw(volume):
                raise FailedPrecondition(
                    f"volume {volume.meta.name} is in use as a raw {volume.spec.frontend} device, which cannot be held "
                    "back; use nvme-tcp for it, or take a snapshot of each volume"
                )
        if exported and not nvme_host.holds_io_back():
            raise FailedPrecondition(
                "this kernel fails I/O to a paused volume, as its native multipath is off: boot with "
                "nvme_core.multipath=Y for snapshots of groups"
            )

    async def _is_raw(self, volume: Volume) -> bool:
        """Whether it has a device here that is not mounted as a filesystem."""
        driver = self._frontends.get(volume.spec.frontend)
        device = await driver.find(volume) if driver and volume.spec.attachments else None
        if device is None:
            return False
        number = devices.number(device)
        return not any(found.device == number for found in mount.uses(device))


@asynccontextmanager
async def _all_of(contexts: Sequence[AbstractAsyncContextManager[None]]) -> AsyncIterator[None]:
    """All of them at once: entered together, left together. The first error is raised."""
    entered = await asyncio.gather(*(each.__aenter__() for each in contexts), return_exceptions=True)
    inside = [each for each, result in zip(contexts, entered, strict=True) if not isinstance(result, BaseException)]
    errors = [result for result in entered if isinstance(result, BaseException)]
    try:
        if errors:
            raise errors[0]
        yield
    except BaseException as error:
        await asyncio.gather(
            *(each.__aexit__(type(error), error, error.__traceback__) for each in inside), return_exceptions=True
        )
        raise
    left = await asyncio.gather(*(each.__aexit__(None, None, None) for each in inside), return_exceptions=True)
    for result in left:
        if isinstance(result, BaseException):
            raise result
