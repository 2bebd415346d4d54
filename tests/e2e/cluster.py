"""The cluster as an administrator sees it, and the node as its root does."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.e2e.daemons import Daemons, kubectl
from tests.e2e.installation import NAMESPACE
from tests.e2e.progress import until

QUARRY = "/apis/quarry.storage/v1alpha1"
RPC_SOCKET = Path("/var/run/quarry/spdk.sock")
Object = dict[str, Any]
_LONG_S = 30.0


class Cluster:
    def __init__(self, daemons: Daemons) -> None:
        self.daemons = daemons
        self.plane = daemons.plane

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return kubectl(self.plane, *arguments, stdin=stdin)

    def apply(self, objects: Sequence[Object]) -> None:
        self.kubectl("apply", "--server-side", "-f", "-", stdin=documents(objects))

    def items(self, path: str) -> list[Object]:
        found: list[Object] = self.plane.request("GET", path)["items"]
        return found

    def pods(self, component: str) -> list[Object]:
        """Of ours, that are not going."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/component={component}"
        return [each for each in self.items(path) if "deletionTimestamp" not in each["metadata"]]

    def pod(self, name: str) -> Object | None:
        found = [each for each in self.items("/api/v1/namespaces/default/pods") if each["metadata"]["name"] == name]
        return found[0] if found else None

    def wait(self, done: Any, says: str, timeout_s: float = 120.0) -> None:
        """Until `done`; else TimeoutError with what the cluster tells. Told before, too, when it takes long."""
        told = [time.monotonic() + _LONG_S]

        def look() -> bool:
            self.daemons.check()
            if told and time.monotonic() > told[0]:
                told.clear()
                print(self.story(), flush=True)
            return bool(done())

        until(look, lambda: f"{says}\n{self.story()}", timeout_s)

    def story(self) -> str:
        """Pods, their troubles, the last events and the agents' last words."""
        parts = [self.kubectl("get", "pods,pvc,volumeattachments", "-A", "-o", "wide")]
        parts.append(self.kubectl("get", "storagenodes,disks,volumes.quarry.storage") if self._is_installed() else "")
        parts.append(self.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp")[-6000:])
        for pod in self.items(f"/api/v1/namespaces/{NAMESPACE}/pods"):
            for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
                parts.append(f"--- {pod['metadata']['name']}/{container['name']}\n")
                parts.append(self.log(pod["metadata"]["name"], container["name"])[-1500:])
        return "\n".join(parts)

    def log(self, pod: str, container: str) -> str:
        try:
            return self.kubectl("logs", "-n", NAMESPACE, pod, "-c", container, "--tail=400")
        except RuntimeError as error:
            return str(error)

    def _is_installed(self) -> bool:
        return "volumes" in self.kubectl("api-resources", "--api-group=quarry.storage")

    def existing(self, objects: Sequence[Object]) -> list[str]:
        """Those of the objects that are there."""
        found = self.kubectl("get", "-f", "-", "--ignore-not-found", "-o", "name", stdin=documents(objects))
        return found.split()

    # --- the node --------------------------------------------------------------------------------------------------

    def container(self, pod: Object, name: str) -> Object:
        """Its status."""
        all_of = [*pod["status"].get("initContainerStatuses", []), *pod["status"].get("containerStatuses", [])]
        return next((dict(each) for each in all_of if each["name"] == name), {})

    def target(self, method: str, params: Object | None = None) -> Any:
        """One JSON-RPC call to the target of the node."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, **({"params": params} if params else {})}
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(str(RPC_SOCKET))
            link.sendall(json.dumps(request).encode())
            text = b""
            while True:
                text += link.recv(1 << 16)
                try:
                    answer = json.loads(text)
                except ValueError:
                    continue
                return answer["result"]

    def lvols(self) -> list[str]:
        """Names of all logical volumes of the target."""
        return [alias for each in self.target("bdev_get_bdevs") for alias in each["aliases"] if "/" in alias]


def documents(objects: Sequence[Object]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})


def mounts() -> set[str]:
    """Where something is mounted in the machine."""
    return {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}


def processes(names: Sequence[str]) -> list[str]:
    """Command lines of the machine's processes that run one of these programs."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(Path(word).name in names for word in words[:2]):
            found.append(" ".join(words))
    return found
