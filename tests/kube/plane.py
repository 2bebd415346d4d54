"""What tests ask of a Kubernetes API as its administrator, be it a real one or an emulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Plane(Protocol):
    """One that runs."""

    @property
    def url(self) -> str:
        """Of the server."""

    @property
    def ca(self) -> Path | None:
        """Whose its certificate is; None when it has none."""

    def config(self, token: str, server: str = "") -> dict[str, Any]:
        """A kubeconfig of whom `token` stands for, which leads to `server` or to `url`."""

    def request(self, method: str, path: str, body: Any = None, content: str = "") -> Any:
        """The answer's JSON. Raises urllib.error.HTTPError."""


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
