"""The emulator and the bridge before it, as processes; what they are made of is fetched by Maven once."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.contract.targets import free_port
from tests.kube.plane import kubeconfig

HERE = Path(__file__).parent
JARS = Path(sys.prefix) / "share" / "kubernetes-emulator"
"""In the virtual environment: `make clean` removes them."""

START_TIMEOUT_S, FETCH_TIMEOUT_S = 60.0, 240.0
PATHS = tuple(
    f"/apis/quarry.storage/v1alpha1/{file.stem}" for file in (HERE.parents[1] / "k8s" / "crds").glob("*.yaml")
)


def missing() -> str:
    """Why there is no emulator here; "" when it can be started."""
    if shutil.which("java") is None:
        return "no java for the emulator of the Kubernetes API (docs/testing.md)"
    if not JARS.exists() and shutil.which("mvn") is None:
        return "no mvn to fetch the emulator of the Kubernetes API (docs/testing.md)"
    return ""


@contextmanager
def emulator() -> Iterator[Emulator]:
    """One that runs. Skips the test, saying why, where there cannot be one."""
    why = missing() or _fetch()
    if why:
        pytest.skip(why)
    made = Emulator()
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _fetch() -> str:
    """Why the emulator could not be fetched; "" when it is here."""
    if JARS.exists():
        return ""
    draft = JARS.with_name("kubernetes-emulator.part")
    shutil.rmtree(draft, ignore_errors=True)
    argv = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies"]
    try:
        done = subprocess.run(
            [*argv, f"-DoutputDirectory={draft}"], capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"mvn did not fetch the emulator of the Kubernetes API in {FETCH_TIMEOUT_S:g} s"
    if done.returncode != 0:
        return f"mvn cannot fetch the emulator of the Kubernetes API: {(done.stdout + done.stderr)[-500:]}"
    draft.rename(JARS)
    return ""


class Emulator:
    """`kubeconfig` names the bridge before it. There are no credentials, roles, schemas and rules."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="qe-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self.kubeconfig = self._folder / "kubeconfig"
        self.url = f"http://127.0.0.1:{free_port()}"
        self.ca: Path | None = None

    def start(self) -> None:
        """Returns when it answers."""
        port = free_port()
        self._run(["java", "-cp", f"{JARS}/*", str(HERE / "Emulator.java"), str(port)])
        self._await(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close())
        bridge = [sys.executable, str(HERE / "bridge.py"), self.url.rpartition(":")[2], f"http://127.0.0.1:{port}"]
        self._run([*bridge, *PATHS])
        self.kubeconfig.write_text(json.dumps(self.config()))
        self._await(self.clear)

    def config(self, token: str = "", server: str = "") -> dict[str, Any]:
        """A kubeconfig; whoever `token` stands for may do everything."""
        return kubeconfig(server or self.url, token)

    def _await(self, ready: Callable[[], object]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                ready()
            except OSError:
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.05)
            else:
                return

    def clear(self) -> None:
        """Deletes all objects of ours, whatever holds them."""
        for path in PATHS:
            for item in self.request("GET", path)["items"]:
                name = item["metadata"]["name"]
                if item["metadata"].get("finalizers"):
                    self.request("PATCH", f"{path}/{name}", {"metadata": {"finalizers": None}})
                if not item["metadata"].get("deletionTimestamp"):
                    self.request("DELETE", f"{path}/{name}")

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _run(self, argv: list[str]) -> None:
        guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with self._log.open("ab") as log:
            self._processes.append(
                subprocess.Popen([*guard, *argv], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self._folder)
            )

    def request(self, method: str, path: str, body: Any = None, content: str = "") -> Any:
        """Raises urllib.error.HTTPError."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Content-Type": content or "application/merge-patch+json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or b"null")
