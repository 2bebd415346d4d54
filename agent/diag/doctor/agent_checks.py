"""Checks of what runs on the machine: target, port, state folder, agent, and what kubelet needs. Pure."""

from __future__ import annotations

import re

from agent.diag import activity
from agent.diag.doctor.facts import Facts
from agent.diag.doctor.findings import Finding, failed, passed, warned

SPDK_MIN = (26, 5)
"""The oldest release that the tests run with."""

NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.sshfs", "glusterfs", "fuse.glusterfs", "9p"}
)
PASSING_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "overlay"})
SPACE_MIN_BYTES, SPACE_GOOD_BYTES = 32 << 20, 512 << 20
_UUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


def target(facts: Facts) -> list[Finding]:
    socket = facts.target.socket
    if socket is None:
        return [passed("target", "no SPDK target is named: the agent starts the embedded one")]
    if not facts.target.answers:
        remedy = f"start `spdk_tgt -r {socket}`, or give the right --spdk-socket; its log says why it ended"
        return [failed("target", f"does not answer at {socket}: {facts.target.trouble}", remedy)]
    number = re.search(r"v(\d+)\.(\d+)", facts.target.version)
    if number is not None and (int(number[1]), int(number[2])) < SPDK_MIN:
        return [warned("target", facts.target.version, "use SPDK v26.05 or newer, which the tests run with")]
    return [passed("target", f"{facts.target.version} at {socket}")]


def target_load(facts: Facts) -> list[Finding]:
    """Its mode, how busy it is, and what keeps one awake that is meant to sleep."""
    target, seen = facts.target.nature, facts.target.activity
    if target is None or seen is None:
        return []
    found = f"{target.program} in {target.mode} mode: {activity.described(target, seen)}"
    if cause := activity.explained(target, seen):
        return [warned("target's load", f"{found}; it does not sleep", cause)]
    return [passed("target's load", found)]


def port(facts: Facts) -> list[Finding]:
    at = f"{facts.port.number}/TCP"
    if not facts.port.taken:
        return [passed("NVMe/TCP port", f"{at} is free")]
    who = f"{facts.port.program} (pid {facts.port.pid})" if facts.port.pid is not None else "a program not visible here"
    if facts.target.answers and facts.port.pid in (None, facts.target.pid):
        return [passed("NVMe/TCP port", f"{at} is the target's")]
    if facts.target.answers or facts.port.pid is not None:
        remedy = "end it, or give another --nvmf-port"
        if "nvmet" in facts.port.program or facts.port.program.startswith(("reactor", "spdk", "quarry")):
            return [warned("NVMe/TCP port", f"{at} is with {who}", f"if that is not the target: {remedy}")]
        return [failed("NVMe/TCP port", f"{at} is with {who}", remedy)]
    return [
        warned(
            "NVMe/TCP port", f"{at} is with {who}", "run this as root to see who; end it, or give another --nvmf-port"
        )
    ]


def host_identity(facts: Facts) -> list[Finding]:
    """The agent brings an own host NQN; what other tools read has to be sane all the same, or `nvme` refuses."""
    nqn, ident = facts.host.nqn, facts.host.id
    if nqn is None:
        return [passed("NVMe host", "no /etc/nvme/hostnqn: the agent has a host NQN of its own")]
    write = "`nvme gen-hostnqn > /etc/nvme/hostnqn`, and its UUID into /etc/nvme/hostid"
    if not re.fullmatch(r"nqn\.\d{4}-\d{2}\.[^\s:]+(:\S+)?", nqn) or len(nqn.encode()) > 223:
        return [warned("NVMe host", f"/etc/nvme/hostnqn holds no NQN: {nqn[:80]!r}", write)]
    if ident is not None and not re.fullmatch(_UUID, ident):
        return [warned("NVMe host", f"/etc/nvme/hostid holds no UUID: {ident[:80]!r}", write)]
    return [passed("NVMe host", nqn)]


def state_dir(facts: Facts) -> list[Finding]:
    folder = facts.state_dir
    at = f"{folder.path} ({folder.filesystem or 'filesystem unknown'}, {folder.free_bytes >> 20} MiB free)"
    local = "put it on a local disk (--state-dir)"
    if folder.filesystem in NETWORK_FILESYSTEMS:
        return [failed("state folder", f"{at}: locks of a network filesystem do not keep two agents apart", local)]
    if not folder.exists:
        # A container that only checks has not mounted it.
        return [
            warned(
                "state folder",
                f"{folder.path} does not exist (here)",
                "the agent makes it; on Kubernetes it is mounted",
            )
        ]
    if not folder.writable:
        remedy = "run as root" if not facts.is_root else "mount it writable, or give another --state-dir"
        return [failed("state folder", f"{at} cannot be written", remedy)]
    if folder.free_bytes < SPACE_MIN_BYTES:
        return [failed("state folder", f"{at}: too little for the database", "make room there")]
    if folder.filesystem in PASSING_FILESYSTEMS:
        return [warned("state folder", f"{at} does not survive a reboot", local)]
    if folder.free_bytes < SPACE_GOOD_BYTES:
        return [warned("state folder", at, "make room there: the database and its log need some MiB")]
    return [passed("state folder", at)]


def agent(facts: Facts) -> list[Finding]:
    who = facts.agent
    if who.ready is None:
        if facts.target.socket is None and facts.kubernetes is None and not facts.state_dir.exists:
            return [warned("agent", "none has run on this machine yet", "start it: `quarry standalone`")]
        return [failed("agent", who.trouble or "does not answer", "start it; its log says why it ended")]
    if not who.ready:
        return [
            failed("agent", f"at {who.url} is not ready: {'; '.join(who.reasons)}", "see its log, and the checks above")
        ]
    return [passed("agent", f"ready at {who.url}")]


def kubelet(facts: Facts) -> list[Finding]:
    kubernetes = facts.kubernetes
    if kubernetes is None:
        return []
    found: list[Finding] = []
    if kubernetes.csi_socket_exists:
        found.append(passed("CSI socket", str(kubernetes.csi_socket)))
    else:
        remedy = "see the log of the agent; --csi-endpoint has to be in kubelet's folder of plugins"
        found.append(failed("CSI socket", f"{kubernetes.csi_socket} does not exist", remedy))
    registration = kubernetes.registration_socket
    if kubernetes.registration_exists:
        found.append(passed("registration", str(registration)))
    elif kubernetes.registry_visible:
        remedy = "see the log of node-driver-registrar; is kubelet's root folder another than /var/lib/kubelet?"
        found.append(failed("registration", f"{registration} does not exist: kubelet knows no driver here", remedy))
    else:
        remedy = "on the node: `ls /var/lib/kubelet/plugins_registry`; `kubectl get csinode` names the driver"
        found.append(warned("registration", f"{registration.parent} is not visible here", remedy))
    return found
