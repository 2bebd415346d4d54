"""A controller of another target attached here: its namespaces as bdevs, kept connected (SPDK's bdev_nvme).

When the connection is lost, I/O waits while the controller is connected again every `reconnect_delay_s`. After
`fast_io_fail_timeout_s` waiting I/O fails, after `ctrlr_loss_timeout_s` controller and bdevs disappear.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from agent.embedded.bdev import BdevRegistry, IoFailure, NameTaken
from agent.embedded.nvmf.remote_bdev import NvmeBdev
from agent.errors import DeadlineExceeded, QuarryError, Unavailable
from agent.nvmf import initiator
from agent.nvmf.failure import CommandError
from agent.nvmf.identify import CMIC_ANA, AnaState
from agent.nvmf.initiator import Controller, NamespaceInfo, Options
from agent.nvmf.pdu import NO_DIGESTS, Digests
from agent.tasks.background import noticed

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0
_IO_TIMEOUT_S = 30.0
_KEEP_ALIVE_S = 10.0
_QUEUE_DEPTH = 64
_ANA_POLL_S = 0.1
T = TypeVar("T")


class State(StrEnum):
    """As `bdev_nvme_get_controllers` reports it."""

    ENABLED = "enabled"
    RESETTING = "resetting"
    DELAYED = "reconnect_is_delayed"
    FAILED = "failed"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class Path:
    """Where and as whom to connect. `family` as in the RPC ("IPv4")."""

    address: str
    service: str
    family: str
    subnqn: str
    hostnqn: str
    digests: Digests = NO_DIGESTS


@dataclass(frozen=True, slots=True)
class Resilience:
    """Seconds, 0 for none; a loss timeout of -1 never gives up, of 0 tries once."""

    ctrlr_loss_timeout_s: int = 0
    reconnect_delay_s: int = 0
    fast_io_fail_timeout_s: int = 0

    @property
    def consistent(self) -> bool:
        """The rules of the real target."""
        loss, delay, fast = self.ctrlr_loss_timeout_s, self.reconnect_delay_s, self.fast_io_fail_timeout_s
        if loss == 0:
            return delay == 0 and fast == 0
        if loss < -1 or delay <= 0 or fast < 0:
            return False
        return (fast == 0 or fast >= delay) and (loss == -1 or (delay <= loss and fast <= loss))


class RemoteController:
    """One attached controller. `gone` is called when it has deleted itself."""

    def __init__(
        self, name: str, path: Path, resilience: Resilience, bdevs: BdevRegistry, gone: Callable[[str], None]
    ) -> None:
        self.name = name
        self.path = path
        self.resilience = resilience
        self.state = State.RESETTING
        self.controller: Controller | None = None
        self.bdevs: dict[int, NvmeBdev] = {}
        self._registry = bdevs
        self._gone = gone
        self._changed = asyncio.Condition()
        self._failing = False
        self._refresh = asyncio.Event()
        self._ana: dict[int, AnaState] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- attach and detach ----------------------------------------------------------------------------------------

    async def attach(self) -> list[str]:
        """Connect and make the bdevs; returns their names. Raises QuarryError when it cannot connect."""
        await self._connect()
        self._spawn(self._follow_events())
        return [bdev.name for _, bdev in sorted(self.bdevs.items())]

    async def detach(self) -> None:
        """Let go: the bdevs disappear, I/O that waits fails."""
        self.state = State.DELETING
        self._failing = True
        await self._wake()
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        for nsid in list(self.bdevs):
            self._remove(nsid)
        controller, self.controller = self.controller, None
        if controller is not None:
            await controller.close()

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        noticed("remote-controller", task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        path = self.path
        options = Options(
            digests=path.digests,
            queue_depth=_QUEUE_DEPTH,
            keep_alive_s=_KEEP_ALIVE_S,
            timeout_s=_CONNECT_TIMEOUT_S,
            io_timeout_s=_IO_TIMEOUT_S,
        )
        controller = await initiator.connect(path.address, int(path.service), path.subnqn, path.hostnqn, options)
        try:
            self._ana = await controller.ana_states()
            namespaces = await controller.namespaces()
            if self.state is State.DELETING:
                raise Unavailable(f"{self.name} was detached while it was being attached")
        except BaseException:  # also when cancelled: nobody else knows of the connection
            await controller.close()
            raise
        self.controller = controller
        self._apply(namespaces)
        controller.on_event(lambda _info: self._refresh.set())
        controller.on_disconnect(lambda failure: self._lost(controller, failure))
        if not controller.connected:
            raise Unavailable(f"{self.name} was lost while it was being identified")
        self.state = State.ENABLED
        self._failing = False
        await self._wake()

    # --- loss and reconnection ------------------------------------------------------------------------------------

    def _lost(self, controller: Controller, failure: Exception) -> None:
        if self.controller is not controller or self.state is State.DELETING:
            return
        log.warning("controller %s lost: %s", self.name, failure)
        self.state = State.RESETTING
        self._spawn(self._reconnect())

    async def _reconnect(self) -> None:
        loop = asyncio.get_running_loop()
        rules = self.resilience
        lost_at = loop.time()
        fail_fast = None
        if rules.fast_io_fail_timeout_s:
            fail_fast = loop.call_later(rules.fast_io_fail_timeout_s, lambda: self._spawn(self._fail_io()))
        try:
            while not await self._try_again():
                waited = loop.time() - lost_at
                if rules.ctrlr_loss_timeout_s == 0:
                    self.state = State.FAILED
                    await self._fail_io()
                    return
                if 0 < rules.ctrlr_loss_timeout_s <= waited:
                    await self._give_up()
                    return
                self.state = State.DELAYED
                left = rules.ctrlr_loss_timeout_s - waited
                endless = rules.ctrlr_loss_timeout_s < 0
                await asyncio.sleep(rules.reconnect_delay_s if endless else min(rules.reconnect_delay_s, left))
                self.state = State.RESETTING
        finally:
            if fail_fast is not None:
                fail_fast.cancel()

    async def _try_again(self) -> bool:
        old, self.controller = self.controller, None
        if old is not None:
            await old.close()
        try:
            await self._connect()
        except (QuarryError, ValueError) as error:
            log.info("controller %s cannot be connected again yet: %s", self.name, error)
            return False
        return True

    async def _give_up(self) -> None:
        log.warning("controller %s is gone after %s s", self.name, self.resilience.ctrlr_loss_timeout_s)
        self._gone(self.name)
        await self.detach()

    async def _fail_io(self) -> None:
        self._failing = True
        await self._wake()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # --- namespaces -----------------------------------------------------------------------------------------------

    async def _follow_events(self) -> None:
        """After an event: read which namespaces and states there are now."""
        while True:
            await self._refresh.wait()
            self._refresh.clear()
            controller = self.controller
            if controller is None:
                continue
            with contextlib.suppress(QuarryError, ValueError):
                self._ana = await controller.ana_states()
                await controller.changed_namespaces()
                self._apply(await controller.namespaces())
                await self._wake()

    def _apply(self, namespaces: list[NamespaceInfo]) -> None:
        """Make the bdevs what the controller says: new, resized, gone."""
        present = {namespace.nsid: namespace for namespace in namespaces}
        for nsid, bdev in list(self.bdevs.items()):
            found = present.get(nsid)
            if found is None or (found.uuid and found.uuid != bdev.uuid) or found.block_bytes != bdev.block_size:
                self._remove(nsid)
        for nsid, namespace in present.items():
            bdev_now = self.bdevs.get(nsid)
            if bdev_now is not None:
                self._registry.resize(bdev_now, namespace.size_bytes // namespace.block_bytes)
            else:
                self._add(namespace)

    def _add(self, namespace: NamespaceInfo) -> None:
        bdev = NvmeBdev(self, namespace)
        try:
            self._registry.add(bdev)
        except NameTaken as error:
            log.warning("namespace %d of %s gets no bdev: %s", namespace.nsid, self.name, error)
            return
        self.bdevs[namespace.nsid] = bdev

    def _remove(self, nsid: int) -> None:
        self._registry.remove(self.bdevs.pop(nsid).name)

    # --- I/O ------------------------------------------------------------------------------------------------------

    async def perform(self, operation: Callable[[Controller], Awaitable[T]]) -> T:
        """Run an I/O, again after a reconnection, and again while the path is inaccessible. Raises IoFailure."""
        inaccessible_since: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            controller = await self._usable()
            try:
                return await operation(controller)
            except CommandError as error:
                if not error.path_related:
                    raise IoFailure(errno.EIO, str(error)) from error
                inaccessible_since = inaccessible_since or loop.time()
                limit = max(controller.info.ana_transition_s, 1)
                if loop.time() - inaccessible_since > limit:
                    raise IoFailure(errno.EIO, f"{self.name} stayed inaccessible for {limit} s") from error
                await self._wait_for_change(_ANA_POLL_S)
            except (Unavailable, DeadlineExceeded) as error:
                if controller is self.controller and controller.connected:
                    raise IoFailure(errno.EIO, str(error)) from error
            except QuarryError as error:  # e.g. the namespace is gone
                raise IoFailure(errno.EIO, str(error)) from error

    async def _usable(self) -> Controller:
        """The connected controller; waits for a reconnection unless I/O has to fail now."""
        async with self._changed:
            while True:
                controller = self.controller
                if controller is not None and controller.connected and self.state is State.ENABLED:
                    return controller
                if self._failing:
                    raise IoFailure(errno.EIO, f"controller {self.name} is {self.state}")
                await self._changed.wait()

    async def _wait_for_change(self, at_most_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s), self._changed:
                await self._changed.wait()

    # --- description ----------------------------------------------------------------------------------------------

    def describe_path(self) -> dict[str, str]:
        path = self.path
        return {
            "trtype": "TCP",
            "adrfam": path.family,
            "traddr": path.address,
            "trsvcid": path.service,
            "subnqn": path.subnqn,
        }

    def describe(self) -> dict[str, Any]:
        """One element of `ctrlrs` of `bdev_nvme_get_controllers`."""
        return {
            "state": self.state.value,
            "trid": self.describe_path(),
            "cntlid": self.controller.cntlid if self.controller is not None else 0,
            "host": {"nqn": self.path.hostnqn, "addr": "", "svcid": "", "no_shn_notification": False},
        }

    def ana_state(self, group: int) -> AnaState | None:
        """State of an ANA group; None when the controller does not report ANA."""
        if self.controller is None or not self.controller.info.cmic & CMIC_ANA:
            return None
        return self._ana.get(group, AnaState.OPTIMIZED)
