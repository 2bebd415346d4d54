"""What runs on the machine beside the Pods: control plane, containerd, kubelet."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.images import PAUSE
from tests.e2e.machine import API_IP, NODE_IP
from tests.e2e.programs import NETWORK, need
from tests.e2e.progress import say, until
from tests.kube.control_plane import ControlPlane

NODE = "node-1"
POD_CIDR = "10.244.0.0/24"
_MANAGER, _SCHEDULER, _KUBELET = "kube-controller-manager", "kube-scheduler", "kubelet"
USERS = {
    _MANAGER: (f"system:{_MANAGER}", ""),
    _SCHEDULER: (f"system:{_SCHEDULER}", ""),
    _KUBELET: (f"system:node:{NODE}", "system:nodes"),
}
"""Each is who it is in a real cluster, with the permissions of that: name and group by token."""


class Plane(ControlPlane):
    """The control plane where Pods look for it: at the first address of the services, so that no proxy is needed."""

    def __init__(self) -> None:
        super().__init__(API_IP, 443, USERS)

    def install(self) -> None:
        """Nothing: the manifest is to bring it all."""


class Daemons:
    """Everything a node needs, in `folder`. It is not stopped: it ends with the machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plane = Plane()
        self.socket = Path("/run/containerd/containerd.sock")
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, images: Path) -> None:
        """Returns when the node is Ready."""
        say("etcd, kube-apiserver")
        self.plane.start()
        say("kube-controller-manager, kube-scheduler")
        self._start_controllers()
        say("containerd")
        self._start_containerd()
        say(f"images ({images.stat().st_size >> 20} MiB)")
        self.ctr("images", "import", str(images))
        say("kubelet")
        self._start_kubelet()
        until(lambda: self._is_ready(), "the node is not Ready", 120)

    def ctr(self, *arguments: str) -> str:
        argv = [str(need("ctr")), "--address", str(self.socket), "--namespace", "k8s.io", *arguments]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ctr {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def check(self) -> None:
        """Raises RuntimeError when one of them has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}: {self.log(name)}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def _is_ready(self) -> bool:
        self.check()
        node = self.plane.request("GET", f"/api/v1/nodes/{NODE}")
        held = {each["type"]: each["status"] for each in node["status"]["conditions"]}
        return held.get("Ready") == "True" and not node["spec"].get("taints")

    def _launch(self, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}.log").open("ab") as log:
            argv = [str(need(program)), *arguments]
            self._running[program] = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )

    def _kubeconfig(self, name: str) -> str:
        file = self.folder / f"{name}.kubeconfig"
        file.write_text(json.dumps(self.plane.config(name)))
        return f"--kubeconfig={file}"

    def _start_controllers(self) -> None:
        self._launch(
            _MANAGER,
            self._kubeconfig(_MANAGER),
            f"--service-account-private-key-file={self.plane.folder / 'sa.key'}",
            f"--root-ca-file={self.plane.ca}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
        )
        self._launch(_SCHEDULER, self._kubeconfig(_SCHEDULER), "--leader-elect=false")

    def _start_containerd(self) -> None:
        plugins = self.folder / "cni"
        plugins.mkdir()
        for each in NETWORK:
            (plugins / each).symlink_to(need(each))
        config = self.folder / "containerd.toml"
        config.write_text(_CONTAINERD.format(socket=self.socket, pause=PAUSE, plugins=plugins, network=self._network()))
        self._launch("containerd", "--config", str(config))
        until(self._answers, "containerd does not answer", 60)

    def _answers(self) -> bool:
        self.check()
        try:
            return bool(self.ctr("version"))
        except RuntimeError:
            return False

    def _network(self) -> Path:
        """Configuration of a network of Pods: a pair of interfaces each, routed."""
        folder = self.folder / "network"
        folder.mkdir()
        ipam = {"type": "host-local", "ranges": [[{"subnet": POD_CIDR}]], "routes": [{"dst": "0.0.0.0/0"}]}
        plugins = [{"type": "ptp", "ipam": ipam | {"dataDir": str(self.folder / "addresses")}}]
        (folder / "10-pods.conflist").write_text(
            json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins})
        )
        return folder

    def _start_kubelet(self) -> None:
        config = self.folder / "kubelet.json"
        config.write_text(json.dumps(_kubelet(self.socket)))
        arguments = [f"--config={config}", f"--hostname-override={NODE}", f"--node-ip={NODE_IP}"]
        self._launch(_KUBELET, self._kubeconfig(_KUBELET), *arguments, f"--cert-dir={self.folder / 'kubelet-certs'}")


_CONTAINERD = """\
version = 2
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  # A machine in a container has no CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{network}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def _kubelet(socket: Path) -> dict[str, object]:
    """cgroups are used as they are, without tiers by quality of service: those want controllers that not all have."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{socket}",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        "failSwapOn": False,
        "resolvConf": "",
        "localStorageCapacityIsolation": False,
        "evictionHard": {"imagefs.available": "1%", "nodefs.available": "1%", "memory.available": "50Mi"},
        "imageGCHighThresholdPercent": 100,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
    }


def kubectl(plane: ControlPlane, *arguments: str, stdin: str = "") -> str:
    """As an administrator. Raises RuntimeError with what it says."""
    argv: Sequence[str] = [str(need("kubectl")), f"--kubeconfig={plane.kubeconfig}", *arguments]
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, env=os.environ, timeout=180)
    if done.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
