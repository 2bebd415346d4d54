"""NVMe-oF in the embedded target: subsystems exported over NVMe/TCP, and controllers attached as bdevs."""

from __future__ import annotations

from agent.embedded.bdev import BdevRegistry
from agent.embedded.nvmf.rpc_bdev_nvme import BdevNvmeMethods
from agent.embedded.nvmf.rpc_namespace import NamespaceMethods
from agent.embedded.nvmf.rpc_subsystem import SubsystemMethods
from agent.embedded.nvmf.rpc_transport import TransportMethods
from agent.embedded.nvmf.target import Target
from agent.embedded.rpc import Methods


class Nvmf:
    """The running NVMe-oF half of the target. `close` cuts all hosts and lets all attached controllers go."""

    def __init__(self, target: Target, attached: BdevNvmeMethods) -> None:
        self.target = target
        self._attached = attached

    async def close(self) -> None:
        await self.target.close()
        await self._attached.close()


MAX_SUBSYSTEMS = 65_536
"""As many as the real target can be told to serve. It serves 1,024 unless it is told."""


def register(
    methods: Methods, bdevs: BdevRegistry, bind_address: str | None = None, max_subsystems: int = MAX_SUBSYSTEMS
) -> Nvmf:
    """Add the `nvmf_*` and `bdev_nvme_*` methods. `bind_address` is the only address listeners may use, if given."""
    target = Target(bind_address, max_subsystems)
    TransportMethods(target).register(methods)
    SubsystemMethods(target).register(methods)
    NamespaceMethods(target, bdevs).register(methods)
    attached = BdevNvmeMethods(bdevs)
    attached.register(methods)
    return Nvmf(target, attached)
