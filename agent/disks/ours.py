"""Which block devices show a volume of Quarry: in use on this machine, and never a disk."""

from __future__ import annotations

import re

from agent.disks.source import Source, Usage
from agent.disks.transport import FABRICS, Transport
from agent.model import VOLUME_NQN_PREFIX

_EMBEDDED = re.compile(r".*\.lvs/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.data( \(deleted\))?")
"""Where the embedded target keeps the data of a logical volume (agent.embedded.lvs)."""


def volume_shown(source: Source, name: str, kind: Transport, usage: Usage) -> str:
    """The volume that the device shows, in words; "" when it is none of ours."""
    if kind in FABRICS:
        nqn = source.read(f"class/block/{name}/device/subsysnqn") or ""
        return f"volume {nqn.removeprefix(VOLUME_NQN_PREFIX)}" if nqn.startswith(VOLUME_NQN_PREFIX) else ""
    if noted := usage.volumes.get(name):
        return f"volume {noted}"
    backing = source.read(f"class/block/{name}/loop/backing_file") if kind is Transport.LOOP else None
    return f"a volume of the embedded target ({backing})" if backing and _EMBEDDED.fullmatch(backing) else ""
