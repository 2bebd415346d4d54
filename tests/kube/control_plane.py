"""A real kube-apiserver with its etcd on loopback, as processes that a test can kill, freeze and start again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.contract.targets import DIE_WITH_US, free_port

from .plane import API, DATABASE, kubeconfig

START_TIMEOUT_S = 60.0
_NOBODY: Mapping[str, tuple[str, str]] = {}
PROGRAMS = (API, DATABASE, "openssl")
CONTROLLER_MANAGER = "kube-controller-manager"
ADMIN_TOKEN = "admin-of-the-tests"
CRDS = Path(__file__).parents[2] / "k8s" / "crds"


def find(program: str) -> str | None:
    """`program` in KUBEBUILDER_ASSETS, else on PATH."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    found = shutil.which(program, path=assets) if assets else None
    return found or shutil.which(program)


def missing() -> str:
    """What a control plane lacks here, as the reason of a skip; "" when it can be started."""
    absent = [program for program in PROGRAMS if find(program) is None]
    return f"no {', '.join(absent)} (KUBEBUILDER_ASSETS or PATH; docs/testing.md)" if absent else ""


def _path(definition: bytes) -> str:
    name = yaml.safe_load(definition)["metadata"]["name"]
    return f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"


@contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """One that runs until the end of the block; a skip where it cannot be started. For the main thread."""
    why = missing()
    if why:
        pytest.skip(why)
    plane = ControlPlane()
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


class ControlPlane:
    """etcd and kube-apiserver; `kubeconfig` is an administrator's.

    `users` has the name and the group of those who come with other tokens; a kubelet's is held to its node.
    """

    def __init__(
        self, address: str = "127.0.0.1", port: int = 0, users: Mapping[str, tuple[str, str]] = _NOBODY
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qk-"))
        self.address = address
        self.port = port or free_port()
        self.url = f"https://{address}:{self.port}"
        self._users = {ADMIN_TOKEN: ("admin", "system:masters"), **users}
        self.kubeconfig = self.folder / "kubeconfig"
        self.ca = self.folder / "certs" / "apiserver.crt"
        self._etcd_ports = (free_port(), free_port())
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Returns when the API is ready and knows our resources."""
        key = self.folder / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        lines = [",".join(filter(None, (token, name, name, group))) for token, (name, group) in self._users.items()]
        (self.folder / "tokens.csv").write_text("\n".join(lines))
        self.start_etcd()
        self.launch_apiserver()
        self.await_apiserver()
        self.kubeconfig.write_text(json.dumps(self.config(ADMIN_TOKEN)))
        self.install()

    def start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in self._etcd_ports)
        self._start(
            DATABASE,
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        )

    def launch_apiserver(self) -> None:
        """To be called in the main thread (see DIE_WITH_US)."""
        self._start(
            API,
            f"--etcd-servers=http://127.0.0.1:{self._etcd_ports[0]}",
            f"--secure-port={self.port}",
            f"--bind-address={self.address}",
            f"--cert-dir={self.folder / 'certs'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.folder / 'sa.key'}",
            f"--service-account-signing-key-file={self.folder / 'sa.key'}",
        )

    def start_controllers(self, *names: str) -> None:
        """These controllers of kube-controller-manager, which has to be there (`find`), unless they run."""
        if CONTROLLER_MANAGER in self._processes:
            return
        self._start(
            CONTROLLER_MANAGER,
            f"--kubeconfig={self.kubeconfig}",
            f"--controllers={','.join(names)}",
            "--leader-elect=false",
            "--use-service-account-credentials=false",
            "--secure-port=0",
            "--pvclaimbinder-sync-period=2s",
        )

    def await_apiserver(self) -> None:
        """Returns when it is ready and serves our resources."""
        self._until(lambda: self.request("GET", "/readyz", raw=True) is not None, "kube-apiserver is not ready")
        if self.kubeconfig.exists():
            self._until(self._serves_all, "our resources are not served")

    def _start(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.log").open("ab") as log:
            argv = [*DIE_WITH_US, find(program) or program, *arguments]
            self._processes[program] = subprocess.Popen(argv, stdout=log, stderr=log, cwd=self.folder)

    def _until(self, done: Any, says: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            for program, process in self._processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{program} ended: {self.log(program)}")
            try:
                if done():
                    return
            except (OSError, urllib.error.URLError):
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"{says}: {self.log(API)}")
            time.sleep(0.05)

    def log(self, program: str) -> str:
        return (self.folder / f"{program}.log").read_text(errors="replace")[-3000:]

    def recover(self) -> None:
        """Starts what a test has killed or frozen."""
        for program in self._processes:
            self.signal(program, signal.SIGCONT)
        if DATABASE not in self._processes:
            self.start_etcd()
        if API not in self._processes:
            self.launch_apiserver()
            self.await_apiserver()

    def kill(self, program: str) -> None:
        process = self._processes.pop(program)
        process.kill()
        process.wait()

    def signal(self, program: str, number: int) -> None:
        self._processes[program].send_signal(number)

    def stop(self) -> None:
        for program in list(self._processes):
            self.signal(program, signal.SIGCONT)
            self.kill(program)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- what an administrator does --------------------------------------------------------------------------------

    def install(self) -> None:
        """Applies the custom resources and waits until they are served."""
        for file in sorted(CRDS.glob("*.yaml")):
            definition = file.read_bytes()
            self.serve(definition)
            path = _path(definition)
            self._until(lambda path=path: self._is_established(path), f"{file.stem} are not served")

    def serve(self, definition: bytes) -> None:
        path = f"{_path(definition)}?fieldManager=tests&force=true"
        self.request("PATCH", path, definition, "application/apply-patch+yaml")

    def _serves_all(self) -> bool:
        return all(self.request("GET", f"/apis/quarry.storage/v1alpha1/{file.stem}") for file in CRDS.glob("*.yaml"))

    def _is_established(self, path: str) -> bool:
        definition = self.request("GET", path)
        held = {each["type"]: each["status"] for each in (definition.get("status") or {}).get("conditions") or []}
        if held.get("Established") != "True":
            return False
        spec = definition["spec"]
        try:
            self.request("GET", f"/apis/{spec['group']}/v1alpha1/{spec['names']['plural']}")
        except urllib.error.HTTPError as error:
            return error.code != 404
        return True

    def clear(self) -> None:
        """Deletes all objects of ours, whatever holds them."""
        for file in CRDS.glob("*.yaml"):
            path = f"/apis/quarry.storage/v1alpha1/{file.stem}"
            items = self.request("GET", path)["items"]
            for item in items:
                if item["metadata"].get("finalizers"):
                    patch = b'{"metadata":{"finalizers":null}}'
                    name = item["metadata"]["name"]
                    self.request("PATCH", f"{path}/{name}", patch, "application/merge-patch+json")
            if items:
                self.request("DELETE", path)

    def request(self, method: str, path: str, body: Any = None, content: str = "", *, raw: bool = False) -> Any:
        """As an administrator. Raises urllib.error.HTTPError."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": content or "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        context = ssl.create_default_context(cafile=str(self.ca))
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            text = answer.read()
        return text if raw else json.loads(text)

    def events(self, kind: str, name: str) -> list[dict[str, Any]]:
        selector = quote(f"involvedObject.kind={kind},involvedObject.name={name}")
        items: list[dict[str, Any]] = self.request(
            "GET", f"/api/v1/namespaces/default/events?fieldSelector={selector}"
        )["items"]
        return items

    def compact(self) -> None:
        """Makes etcd forget everything but the present."""
        url = f"http://127.0.0.1:{self._etcd_ports[0]}/v3/kv"
        with urllib.request.urlopen(f"{url}/range", b'{"key":"AA=="}', timeout=10) as answer:
            revision = json.loads(answer.read())["header"]["revision"]
        body = json.dumps({"revision": revision}).encode()
        with urllib.request.urlopen(f"{url}/compaction", body, timeout=10) as answer:
            answer.read()

    def config(self, token: str, server: str = "") -> dict[str, Any]:
        """A kubeconfig of whom `token` stands for."""
        return kubeconfig(server or self.url, token, self.ca)
