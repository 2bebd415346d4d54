"""An agent in a cluster, asked through the API server's proxy to its Pod, by the `kubectl` of the one who asks.

So it needs no more than the permissions of that person: to list Pods and to get `pods/proxy` in the namespace.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

from agent.errors import CommandFailed, NotFound, Unavailable
from agent.host import process

TIMEOUT_S = 30.0
NAME = "app.kubernetes.io/name=quarry"
COMPONENT = "app.kubernetes.io/component"
PORT_NAME = "http"

_AT_ONCE = 100
"""Names in one command."""


class Kubectl:
    """Asks agents in `namespace` of the cluster that kubectl's configuration, or its `context`, names."""

    def __init__(self, namespace: str, context: str | None) -> None:
        self._namespace = namespace
        self._context = context

    def asked(self, node: str | None, path: str) -> Any:
        """What the agent of `node`, or without one a controller, answers at `path`. Raises NotFound, Unavailable."""
        return asyncio.run(self._asked(node, path))

    def find(self, resource: str, name: str) -> Any | None:
        """An object of the API, or None when there is none of that name. Raises CommandFailed."""
        done = asyncio.run(self._run("get", resource, name, "--ignore-not-found", "-o", "json"))
        return json.loads(done) if done.strip() else None

    def all(self, resource: str) -> list[Any]:
        """All objects of a cluster-scoped resource. Raises CommandFailed."""
        found: list[Any] = asyncio.run(self._get("get", resource, "-o", "json"))["items"]
        return found

    def delete(self, resource: str, names: Sequence[str]) -> None:
        """Absent is fine. Raises CommandFailed."""
        for first in range(0, len(names), _AT_ONCE):
            some = names[first : first + _AT_ONCE]
            asyncio.run(self._run("delete", resource, *some, "--ignore-not-found", "--wait=false"))

    def patch(self, resource: str, name: str, change: dict[str, Any]) -> None:
        """A merge patch. Raises CommandFailed."""
        asyncio.run(self._run("patch", resource, name, "--type=merge", "-p", json.dumps(change)))

    async def _run(self, *arguments: str) -> str:
        return str((await process.run(self._argv(*arguments), timeout_s=TIMEOUT_S)).stdout)

    async def run_in(self, node: str, command: list[str]) -> process.Completed:
        """A command in the agent's container on `node` (`kubectl exec`), whatever it ends with up to code 1."""
        pod = await self._pod(node)
        argv = [*self._argv("exec", "-n", self._namespace, pod["metadata"]["name"]), "-c", "agent", "--", *command]
        return await process.run(argv, timeout_s=TIMEOUT_S, ok_codes=(0, 1))

    async def _asked(self, node: str | None, path: str) -> Any:
        pod = await self._pod(node)
        base = f"/api/v1/namespaces/{self._namespace}/pods/{pod['metadata']['name']}:{_port(pod)}/proxy"
        try:
            return await self._get("get", "--raw", base + path)
        except CommandFailed as error:
            # kubectl keeps the agent's answer to itself when it is an error: whether it was "absent" the list tells.
            _, _, kind, *name = path.split("/", 3)
            if not name:
                raise Unavailable(f"Pod {pod['metadata']['name']} does not answer: {error.stderr.strip()}") from error
            wanted = unquote(name[0])
            listed = await self._get("get", "--raw", f"{base}/v1/{quote(kind)}")
            if any(wanted in (each["meta"]["name"], each["spec"].get("csi_name")) for each in listed["items"]):
                raise
            raise NotFound(kind.removesuffix("s"), wanted) from error

    async def _pod(self, node: str | None) -> Any:
        """A running Pod that serves: of the agent on `node`, or of the controller."""
        selector = f"{NAME},{COMPONENT}={'controller' if node is None else 'node'}"
        fields = "status.phase=Running" + (f",spec.nodeName={node}" if node is not None else "")
        found = await self._get(
            "get", "pods", "-n", self._namespace, "-l", selector, "--field-selector", fields, "-o", "json"
        )
        pods = sorted(found["items"], key=lambda pod: (not _is_ready(pod), pod["metadata"]["name"]))
        if not pods:
            what = "no controller" if node is None else f"no agent on node {node}"
            raise Unavailable(
                f"{what} runs in namespace {self._namespace}: look at `kubectl get pods -n {self._namespace} -o wide`, "
                "or give --node, --namespace or --context"
            )
        return pods[0]

    async def _get(self, *arguments: str) -> Any:
        done = await process.run(self._argv(*arguments), timeout_s=TIMEOUT_S)
        try:
            return json.loads(done.stdout)
        except ValueError as error:
            raise Unavailable(f"kubectl {' '.join(arguments[:2])} answered something that is not JSON") from error

    def _argv(self, *arguments: str) -> list[str]:
        context = ["--context", self._context] if self._context else []
        return ["kubectl", *context, *arguments]


def _is_ready(pod: Any) -> bool:
    return any(
        each["type"] == "Ready" and each["status"] == "True" for each in pod.get("status", {}).get("conditions", ())
    )


def _port(pod: Any) -> int:
    """Of the endpoint, as the Pod names it."""
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", ()):
            if port.get("name") == PORT_NAME:
                return int(port["containerPort"])
    raise Unavailable(f"Pod {pod['metadata']['name']} has no port {PORT_NAME!r}: its agent serves no HTTP")
