"""Single writes to one object: each one request, all of them conditional on what was read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.errors import NotFound
from agent.model import Resource
from agent.store.kubernetes import wire
from agent.store.kubernetes.connection import MERGE_PATCH, Connection
from agent.store.kubernetes.kinds import FINALIZER, KINDS
from agent.store.kubernetes.refusals import Asked
from agent.store.kubernetes.wire import Held

Json = dict[str, Any]


class Writes:
    """What can be done to an object. Each returns what the API answered; Conflict is the caller's to decide on."""

    def __init__(self, connection: Connection, read: Callable[[str, Json], Held]) -> None:
        """`read` makes an object of the API's of one of that kind."""
        self._connection = connection
        self._read = read

    async def read(self, kind: str, name: str) -> Held | None:
        try:
            answer = await self._connection.request("GET", f"{KINDS[kind].path}/{name}", Asked(kind, name))
        except NotFound:
            return None
        return self._read(kind, answer)

    async def create(self, resource: Resource) -> Held:
        kind = type(resource).__name__
        asked = Asked(kind, resource.meta.name)
        body = wire.new_object(resource)
        return self._read(kind, await self._connection.request("POST", KINDS[kind].path, asked, body=body))

    async def change_spec(self, held: Held, after: Resource) -> Held:
        """Also puts the finalizer back that somebody took off something with data.

        And ends the account of who wrote which field as long as it names only us: it is half of an object, told to
        all who watch, and a third of what a write costs the API server. It begins anew with whoever applies.
        """
        body: Json = {"spec": wire.merge_patch(wire.part(held.resource, "spec"), wire.part(after, "spec"))}
        metadata: Json = {"managedFields": [{}]} if held.is_tracked else {}
        kind = KINDS[type(after).__name__]
        is_deleting = held.resource.meta.deleting
        if not is_deleting and FINALIZER not in held.finalizers and (kind.has_data or after.meta.deleting):
            metadata["finalizers"] = [*held.finalizers, FINALIZER]
        return await self._patch(held, {**body, "metadata": metadata})

    async def change_status(self, held: Held, after: Resource) -> Held:
        patch = wire.merge_patch(wire.part(held.resource, "status"), wire.part(after, "status"))
        return await self._patch(held, {"status": patch}, "/status")

    async def protect(self, held: Held) -> Held:
        """Puts our finalizer back."""
        return await self._patch(held, {"metadata": {"finalizers": [*held.finalizers, FINALIZER]}})

    async def release(self, held: Held) -> None:
        """Takes our finalizer off: an object that is marked as deleting then goes."""
        left = [each for each in held.finalizers if each != FINALIZER]
        await self._patch(held, {"metadata": {"finalizers": left}})

    async def mark(self, held: Held, version: int | None) -> Held | None:
        """Deletes: what has a finalizer is only marked as deleting, and returned; None when it is gone."""
        kind, name = type(held.resource).__name__, held.resource.meta.name
        conditions: Json = {"uid": held.uid}
        if version is not None:
            conditions["resourceVersion"] = str(version)
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}
        asked = Asked(kind, name, version or held.version)
        answer = await self._connection.request("DELETE", f"{KINDS[kind].path}/{name}", asked, body=body)
        if answer.get("kind") != kind or "deletionTimestamp" not in answer["metadata"]:
            return None
        return self._read(kind, answer)

    async def _patch(self, held: Held, body: Json, subresource: str = "") -> Held:
        kind, name = type(held.resource).__name__, held.resource.meta.name
        metadata = {**body.get("metadata", {}), "resourceVersion": str(held.version)}
        answer = await self._connection.request(
            "PATCH",
            f"{KINDS[kind].path}/{name}{subresource}",
            Asked(kind, name, held.version),
            body={**body, "metadata": metadata},
            content=MERGE_PATCH,
        )
        return self._read(kind, answer)
