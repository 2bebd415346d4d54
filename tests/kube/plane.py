"""What tests ask of a Kubernetes API as its administrator, be it a real one or an emulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

API, DATABASE = "kube-apiserver", "etcd"
"""Programs."""


class Plane(Protocol):
    """One that runs."""

    @property
    def url(self) -> str:
        """Of the server."""

    @property
    def ca(self) -> Path | None:
        """Whose its certificate is; None when it has none."""

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""

    def config(self, token: str, server: str = "") -> dict[str, Any]:
        """A kubeconfig of whom `token` stands for, which leads to `server` or to `url`."""

    def request(self, method: str, path: str, body: Any = None, content: str = "") -> Any:
        """The answer's JSON. Raises urllib.error.HTTPError."""

    def events(self, kind: str, name: str) -> list[dict[str, Any]]:
        """Those of a resource of ours, in the form of core/v1."""

    def serve(self, definition: bytes) -> None:
        """Has a CustomResourceDefinition (YAML) in place of the one of that name. It takes effect a moment later."""

    def install(self) -> None:
        """Has the definitions of k8s/crds, and returns when they are served."""

    def clear(self) -> None:
        """Deletes all objects of ours, whatever holds them."""

    def recover(self) -> None:
        """Starts what a test has killed or frozen."""

    def kill(self, program: str) -> None:
        """What it stored is not lost."""

    def signal(self, program: str, number: int) -> None:
        """As kill(2)."""

    def launch_apiserver(self) -> None:
        """After it was killed. To be called in the main thread, with which it dies."""

    def await_apiserver(self) -> None:
        """Returns when it is ready and serves our resources."""

    def compact(self) -> None:
        """Makes it forget everything but the present."""


def kubeconfig(server: str, token: str = "", ca: Path | None = None) -> dict[str, Any]:
    """One that leads to `server`, with a certificate of `ca`, as whom `token` stands for."""
    cluster = {"server": server} | ({"certificate-authority": str(ca)} if ca else {})
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": "user", "user": {"token": token} if token else {}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "user"}}],
        "current-context": "tests",
    }
