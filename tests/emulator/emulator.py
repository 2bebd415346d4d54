"""The emulator and the bridge before it, as processes."""

from __future__ import annotations

import json
import shutil
import signal
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

from tests.contract.targets import DIE_WITH_US, free_port
from tests.kube.plane import API, DATABASE, kubeconfig

HERE = Path(__file__).parent
JARS = Path(sys.prefix) / "share" / "kubernetes-emulator"
"""In the virtual environment, by scripts/emulator.sh."""

START_TIMEOUT_S = 60.0
PATHS = tuple(
    f"/apis/quarry.storage/v1alpha1/{file.stem}" for file in (HERE.parents[1] / "k8s" / "crds").glob("*.yaml")
)


def missing() -> str:
    """Why there is no emulator here; "" when it can be started."""
    if shutil.which("java") is None:
        return "no java for the emulator of the Kubernetes API (docs/testing.md)"
    if not JARS.exists():
        return "no emulator of the Kubernetes API (sh scripts/emulator.sh)"
    return ""


@contextmanager
def emulator() -> Iterator[Emulator]:
    """One that runs. Skips the test, saying why, where there cannot be one."""
    if why := missing():
        pytest.skip(why)
    made = Emulator()
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Emulator:
    """A Plane: the emulator in the place of its database, the bridge in that of its server.

    Everybody may do everything. The emulator has all in its memory, so it can be frozen, but not killed.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="qe-"))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._port = free_port()
        self.kubeconfig = self._folder / "kubeconfig"
        self.url = f"http://127.0.0.1:{free_port()}"
        self.ca: Path | None = None

    def start(self) -> None:
        """Returns when it answers."""
        java = ["java", f"-Djava.io.tmpdir={self._folder}", "-cp", f"{JARS}/*", str(HERE / "Emulator.java")]
        self._run(DATABASE, [*java, str(self._port)])
        its = f"http://127.0.0.1:{self._port}"
        self._await(lambda: socket.create_connection(("127.0.0.1", self._port), timeout=1).close())
        bridge = [sys.executable, str(HERE / "bridge.py"), self.url.rpartition(":")[2], its, *PATHS]
        self._run(API, bridge, stdout=subprocess.PIPE)
        self.kubeconfig.write_text(json.dumps(self.config()))
        self.launch_apiserver()
        self.await_apiserver()

    def launch_apiserver(self) -> None:
        self._order("start")
        self._is_served = True

    def await_apiserver(self) -> None:
        self._await(lambda: self.request("GET", PATHS[0]))

    def compact(self) -> None:
        self._order("forget")

    def recover(self) -> None:
        self.signal(DATABASE, signal.SIGCONT)
        if not self._is_served:
            self.launch_apiserver()
        self.await_apiserver()

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

    def serve(self, definition: bytes) -> None:
        """Nothing to do: it takes whatever fields there are."""

    def install(self) -> None:
        """As above."""

    def events(self, kind: str, name: str) -> list[dict[str, Any]]:
        """It does not know that one event has two forms, so this one is made here (core/v1 of events.k8s.io/v1)."""
        items = self.request("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
        found = [each for each in items if (each["regarding"]["kind"], each["regarding"]["name"]) == (kind, name)]
        renamed = {"regarding": "involvedObject", "note": "message", "reportingController": "reportingComponent"}
        return [{renamed.get(key, key): value for key, value in each.items()} for each in found]

    def clear(self) -> None:
        """Deletes all objects of ours, whatever holds them."""
        for path in PATHS:
            for item in self.request("GET", path)["items"]:
                name = item["metadata"]["name"]
                if item["metadata"].get("finalizers"):
                    self.request("PATCH", f"{path}/{name}", {"metadata": {"finalizers": None}})
                if not item["metadata"].get("deletionTimestamp"):
                    self.request("DELETE", f"{path}/{name}")

    def kill(self, program: str) -> None:
        assert program == API, "the emulator would lose what is in it"
        self._order("die")
        self._is_served = False

    def signal(self, program: str, number: int) -> None:
        self._processes[program].send_signal(number)

    def _order(self, order: str) -> None:
        """Returns when the bridge has done it."""
        bridge = self._processes[API]
        assert bridge.stdin is not None
        assert bridge.stdout is not None
        bridge.stdin.write(f"{order}\n".encode())
        bridge.stdin.flush()
        assert bridge.stdout.readline().decode() == f"{order}\n", self._log.read_text()

    def stop(self) -> None:
        for process in reversed(self._processes.values()):
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _run(self, program: str, argv: list[str], stdout: int | None = None) -> None:
        with self._log.open("ab") as log:
            self._processes[program] = subprocess.Popen(
                [*DIE_WITH_US, *argv], stdin=subprocess.PIPE, stdout=stdout or log, stderr=log, cwd=self._folder
            )

    def request(self, method: str, path: str, body: Any = None, content: str = "") -> Any:
        """Raises urllib.error.HTTPError."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Content-Type": content or "application/merge-patch+json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or b"null")
