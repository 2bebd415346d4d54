"""Binds claims and volumes to each other, where there is no kube-controller-manager to do it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.k8s.manifest import Object

from .installation import Client

LOOK_S = 0.2
_CORE = "/api/v1"
_CLAIM_PROTECTION = "kubernetes.io/pvc-protection"
_VOLUME_PROTECTION = "kubernetes.io/pv-protection"


@asynccontextmanager
async def binding(admin: Client, provisioner: str) -> AsyncIterator[None]:
    """Does so for claims of `provisioner` until the end of the block. An API that is away is asked again."""

    async def run() -> None:
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                await asyncio.to_thread(lambda: _Round(admin, provisioner).go())
            await asyncio.sleep(LOOK_S)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Round:
    """One look at everything. What another has changed meanwhile is refused by the API, and done in the next round."""

    def __init__(self, admin: Client, provisioner: str) -> None:
        self._admin = admin
        self._provisioner = provisioner
        self._claims = {each["metadata"]["uid"]: each for each in self._list("persistentvolumeclaims")}
        self._volumes = self._list("persistentvolumes")

    def _list(self, plural: str) -> list[Object]:
        return list(self._admin("GET", f"{_CORE}/{plural}").body.get("items", ()))

    def go(self) -> None:
        for claim in self._claims.values():
            if "deletionTimestamp" in claim["metadata"]:
                self._let_go(claim, _CLAIM_PROTECTION)
            elif claim["status"].get("phase") != "Bound":
                self._ask_for(claim)
        for volume in self._volumes:
            claim = self._claims.get((volume["spec"].get("claimRef") or {}).get("uid", ""))
            if "deletionTimestamp" in volume["metadata"]:
                self._let_go(volume, _VOLUME_PROTECTION)
            elif claim is None:
                self._report(volume, {"phase": "Released"})
            else:
                self._bind(volume, claim)

    def _ask_for(self, claim: Object) -> None:
        """Tell the provisioner that the claim is for it."""
        wanted = {f"volume.{word}kubernetes.io/storage-provisioner": self._provisioner for word in ("", "beta.")}
        held = claim["metadata"].get("annotations") or {}
        if not wanted.items() <= held.items():
            self._change(claim, {"metadata": {"annotations": wanted}})

    def _bind(self, volume: Object, claim: Object) -> None:
        self._report(volume, {"phase": "Bound"})
        if claim["status"].get("phase") == "Bound":
            return
        done = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}
        self._change(claim, {"metadata": {"annotations": done}, "spec": {"volumeName": volume["metadata"]["name"]}})
        spec = volume["spec"]
        status: Object = {"phase": "Bound", "accessModes": spec["accessModes"], "capacity": spec["capacity"]}
        if "volumeAttributesClassName" in spec:
            status["currentVolumeAttributesClassName"] = spec["volumeAttributesClassName"]
        self._report(claim, status)

    def _let_go(self, document: Object, finalizer: str) -> None:
        held = document["metadata"].get("finalizers") or []
        if finalizer in held:
            rest = [each for each in held if each != finalizer]
            version = document["metadata"]["resourceVersion"]
            self._change(document, {"metadata": {"finalizers": rest, "resourceVersion": version}})

    def _report(self, document: Object, status: Object) -> None:
        if not status.items() <= (document.get("status") or {}).items():
            self._change(document, {"status": status}, "/status")

    def _change(self, document: Object, change: dict[str, Any], part: str = "") -> None:
        metadata = document["metadata"]
        path = f"{_CORE}/persistentvolumes/{metadata['name']}"
        if "namespace" in metadata:
            path = f"{_CORE}/namespaces/{metadata['namespace']}/persistentvolumeclaims/{metadata['name']}"
        self._admin("PATCH", path + part, change)
