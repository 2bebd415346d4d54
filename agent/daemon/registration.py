"""What a node says of itself: its StorageNode, written whole whenever what is recorded differs from what is so."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import replace
from pathlib import Path

from agent.config.settings import Settings
from agent.errors import AlreadyExists, Conflict, FailedPrecondition, Unavailable
from agent.host import ublk
from agent.host.kept import kept
from agent.model import Frontend, Meta, StorageNode, StorageNodeStatus, TargetState, Volume
from agent.spdk.nature import Nature
from agent.store.interface import Store
from agent.volumes.target.bringup import TargetKeeper

log = logging.getLogger(__name__)

HOST_NQN_FILE = "host-nqn"
"""In the state folder: the name by which targets know this machine. Records may be lost, this is what counts."""

_TRIES = 20


class Registration:
    """The StorageNode of this node, and the host NQN that only the state folder says."""

    def __init__(self, store: Store, settings: Settings, host_nqn: str) -> None:
        self._store = store
        self._settings = settings
        self.host_nqn = host_nqn

    async def is_recorded(self) -> bool:
        return await self._store.get(StorageNode, self._settings.node_name) is not None

    async def record(self, state: TargetState, target: Nature | None) -> StorageNode:
        """The record with what is so, written unless it says that already. Raises Unavailable.

        `target` None: it has not been asked yet.
        """
        name = self._settings.node_name
        for _ in range(_TRIES):
            known = await self._store.get(StorageNode, name)
            status = self._status(known.status if known else StorageNodeStatus(), state, target)
            if known is not None and status == known.status:
                return known
            status = replace(status, last_heartbeat=time.time())
            try:
                if known is None:
                    return await self._store.create(StorageNode(Meta(name, created_at=time.time()), status=status))
                return await self._store.update(replace(known, status=status))
            except (Conflict, AlreadyExists):
                continue
        raise Unavailable(f"the record of node {name} is changed by others all the time")

    def _status(self, known: StorageNodeStatus, state: TargetState, target: Nature | None) -> StorageNodeStatus:
        """What others say of the node (conditions) stays."""
        settings = self._settings
        return replace(
            known,
            addresses=(settings.nvmf_address,),
            zone=settings.zone,
            host_nqn=self.host_nqn,
            frontends=known.frontends if target is None else _offered(target),
            max_volumes=settings.max_volumes_per_node,
            target_state=state,
            target_version=target.version if target else "",
            target_mode=str(target.mode) if target else "",
        )


class TargetRecord:
    """Records what the target is as soon as it was asked, before volumes are attached (a `Companion` of the keeper)."""

    def __init__(self, registration: Registration, keeper: TargetKeeper) -> None:
        self._registration = registration
        self._keeper = keeper

    async def record(self) -> None:
        try:
            await self._registration.record(self._keeper.state, self._keeper.nature)
        except Unavailable as error:  # served all the same; the next audit tries again
            log.error("what the target is cannot be recorded: %s", error)


def _offered(target: Nature) -> tuple[Frontend, ...]:
    """What this machine and its target can do together."""
    found = [Frontend.NVME_TCP]
    if target.has_ublk and ublk.is_available():
        found.append(Frontend.UBLK)
    if target.is_embedded:
        found.append(Frontend.LOOP)
    return tuple(found)


async def register(store: Store, settings: Settings) -> Registration:
    """Find out by which host NQN this machine goes, and keep it.

    Raises FailedPrecondition when another node has the same one: two machines behind one name would both be let in.
    """
    host_nqn = await _host_nqn(store, settings)
    for other in await store.list(StorageNode):
        if other.meta.name != settings.node_name and other.status.host_nqn == host_nqn:
            file = settings.state_dir / HOST_NQN_FILE
            raise FailedPrecondition(
                f"node {other.meta.name} has the same host NQN as {file}: if that folder was copied from there, remove "
                f"this file; if this is the same machine under a new name, remove the record (quarry nodes forget "
                f"{other.meta.name})"
            )
    return Registration(store, settings, host_nqn)


async def _host_nqn(store: Store, settings: Settings) -> str:
    """The one that was kept; without any the one on record, so that attachments made with it stay good."""
    name = settings.node_name
    known = await store.get(StorageNode, name)
    recorded = known.status.host_nqn if known else ""
    attached = sorted(
        {each.host_nqn for volume in await store.list(Volume) for each in volume.spec.attachments if each.node == name}
        - {""}
    )

    def make() -> str:
        return recorded or next(iter(attached), "") or f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid4()}"

    try:
        found = await asyncio.to_thread(kept, settings.state_dir / HOST_NQN_FILE, make)
    except Unavailable as error:
        if not recorded:
            raise
        log.error("%s", error)  # a start is not to fail for a filesystem that is full
        return recorded
    if recorded not in ("", found):
        log.warning("node %s is recorded as host %s, and is %s: the record is put right", name, recorded, found)
    return found


def own_id(state_dir: Path) -> str:
    """What this state folder is told from others by, made once."""
    return kept(state_dir / "identity", lambda: str(uuid.uuid4()))
