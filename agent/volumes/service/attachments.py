"""Who may have a volume at the same time, and how many volumes a node may have."""

from __future__ import annotations

from collections.abc import Iterable

from agent.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from agent.model import AccessMode, Attachment, StorageNode, Volume
from agent.pools.topology import node_id
from agent.store.interface import Store

_SHARED = frozenset({AccessMode.ROX, AccessMode.RWX, AccessMode.ONE_WRITER})


class Attachments:
    """The volumes of each node, kept in memory: publishing costs the same however many there are."""

    def __init__(self) -> None:
        self._volumes: dict[str, set[str]] = {}

    def count(self, volumes: Iterable[Volume]) -> None:
        """Start from what is stored."""
        for volume in volumes:
            for each in volume.spec.attachments:
                self._volumes.setdefault(each.node, set()).add(volume.meta.name)

    def admit(self, node: StorageNode, volume: str) -> None:
        """Count `volume` on `node`, or raise ResourceExhausted when that has as many as it may."""
        present, most = self._volumes.setdefault(node.meta.name, set()), node.status.max_volumes
        if most and len(present) >= most and volume not in present:
            raise ResourceExhausted(
                f"node {node.meta.name} has {len(present)} volumes and may have {most}; "
                "unpublish one, or raise max_volumes_per_node"
            )
        present.add(volume)

    def leave(self, node: str, volume: str) -> None:
        """`volume` is not on `node` any more."""
        self._volumes.get(node, set()).discard(volume)


async def node_called(store: Store, called: str) -> StorageNode:
    """The node of that name, or with that CSI node id. Raises NotFound."""
    found = await store.get(StorageNode, called)
    if found is None:
        found = next((each for each in await store.list(StorageNode) if node_id(each.meta.name) == called), None)
    if found is None:
        raise NotFound("node", called)
    return found


def without(volume: Volume, node: str | None) -> tuple[Attachment, ...]:
    """The volume's attachments but for that of `node` (name or CSI node id; None: of all)."""
    if node is None:
        return ()
    return tuple(each for each in volume.spec.attachments if node not in (each.node, node_id(each.node)))


def require_host(node: StorageNode) -> str:
    """By which host NQN the node connects. Unavailable when it has not told: nobody could be let in."""
    if not node.status.host_nqn:
        raise Unavailable(
            f"node {node.meta.name} has not told its host NQN (its record is new, or was emptied): its agent does so "
            "once it runs; repeat the call"
        )
    return node.status.host_nqn


def present(volume: Volume, wanted: Attachment) -> bool:
    """Whether the volume has `wanted` already. Raises AlreadyExists when its node has it in another way."""
    for each in volume.spec.attachments:
        if each.node == wanted.node and each != wanted:
            how = f"{each.access_mode}, {'read-only' if each.readonly else 'read-write'}"
            raise AlreadyExists("attachment", f"{volume.meta.name} to {wanted.node}", f"as {how}; unpublish it first")
    return wanted in volume.spec.attachments


def require_shareable(volume: Volume, wanted: Attachment) -> None:
    """Raise FailedPrecondition when the nodes that have the volume do not admit another one.

    They do when all share it in the same way: somebody who reads only does not expect it to change.
    """
    others = volume.spec.attachments
    if any(each.access_mode is not wanted.access_mode or each.access_mode not in _SHARED for each in others):
        nodes = ", ".join(f"{each.node} as {each.access_mode}" for each in others)
        raise FailedPrecondition(
            f"volume {volume.meta.name} is published to {nodes}; unpublish it there first. If its VolumeAttachment was "
            f"removed by force, nobody does: kubectl patch volume {volume.meta.name} --type=merge -p "
            """'{"spec":{"attachments":null}}' cuts those nodes off"""
        )
    writers = [each.node for each in others if not each.readonly]
    if wanted.access_mode is AccessMode.ONE_WRITER and writers and not wanted.readonly:
        raise FailedPrecondition(
            f"volume {volume.meta.name} has its one writer, {writers[0]}: publish it read-only, or unpublish it there"
        )
