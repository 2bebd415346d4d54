"""Holds the NVMe/TCP port from the moment a target is there: that it is taken is known before the first volume."""

from __future__ import annotations

import contextlib
import logging

from agent.errors import QuarryError, RpcError
from agent.model import NQN_PREFIX
from agent.spdk import nvmf
from agent.spdk.client import Client
from agent.tasks.background import Background
from agent.volumes.rules.plan import Listener

log = logging.getLogger(__name__)

HOLDER_NQN = f"{NQN_PREFIX}:port"
"""A subsystem without hosts and namespaces: it keeps the target listening while no volume is exported."""

_SERIAL, _MODEL = "PORT", "Quarry port"
RETRY_S = 2.0
STOP_S = 1.0
"""How long a target that does not answer may hold up the end of the agent."""


class PortKeeper:
    """Tries again until the target listens."""

    def __init__(self, rpc: Client, listener: Listener) -> None:
        self._rpc = rpc
        self._listener = listener
        self._background = Background()
        self._trouble = ""
        self._held_by = -1
        """The connection on which the port was seen to be held."""

    @property
    def trouble(self) -> str:
        """Why hosts cannot connect to this node, with the remedy; empty when they can."""
        return self._trouble

    async def start(self) -> None:
        self._background.every("nvmf-port", RETRY_S, self._hold)

    async def stop(self) -> None:
        """Let the port go: without an agent the target listens only where volumes are exported."""
        await self._background.stop()
        if self._rpc.connected and self._held_by == self._rpc.generation:
            with contextlib.suppress(QuarryError):
                await self._rpc.call("nvmf_delete_subsystem", {"nqn": HOLDER_NQN}, timeout_s=STOP_S)

    async def brought_up(self) -> None:
        await self._hold()

    async def _hold(self) -> None:
        generation = self._rpc.generation
        if not self._rpc.connected or self._held_by == generation:
            return
        try:
            await self._listen()
        except RpcError as error:
            self._tell(
                f"the target cannot listen on {self._listener.address}:{self._listener.port} ({error.message}), "
                "so that no host can connect: another program has the port (`ss -ltnp`), or the address is not this "
                "machine's. Stop it, or change nvmf_port or nvmf_address"
            )
        except QuarryError as error:
            log.debug("whether the port can be listened on is not known: %s", error)
        else:
            self._held_by = generation
            self._tell("")

    async def _listen(self) -> None:
        """Raises RpcError when the target cannot. All of it may have been done by an earlier agent."""
        address, port = self._listener.address, self._listener.port
        found = await nvmf.get_subsystem(self._rpc, HOLDER_NQN)
        if found is None:
            await nvmf.create_subsystem(self._rpc, HOLDER_NQN, _SERIAL, _MODEL)
        before = {(each.traddr, each.trsvcid) for each in found.listen_addresses} if found else set()
        wanted = (address, str(port))
        for host, service in before - {wanted}:
            await nvmf.remove_listener(self._rpc, HOLDER_NQN, host, int(service))
        if wanted not in before:
            await nvmf.add_listener(self._rpc, HOLDER_NQN, address, port)

    def _tell(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.error("%s", trouble)
        elif self._trouble and not trouble:
            log.info("the target listens on %s:%d", self._listener.address, self._listener.port)
        self._trouble = trouble
