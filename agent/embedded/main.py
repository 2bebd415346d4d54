"""The embedded target as a process: builds its parts, runs until SIGTERM or SIGINT, takes them down in order."""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import signal
from pathlib import Path

from agent.embedded.app_methods import AbsentFrontends, AppMethods, KeyringMethods, NotificationMethods
from agent.embedded.bdev import BdevRegistry
from agent.embedded.bdev_methods import BdevMethods
from agent.embedded.lvs.manager import LvstoreManager
from agent.embedded.lvs.methods import LvolMethods
from agent.embedded.nvmf import MAX_SUBSYSTEMS
from agent.embedded.nvmf import register as register_nvmf
from agent.embedded.raid_methods import RaidMethods
from agent.embedded.rpc import Methods
from agent.embedded.server import FileLock, JsonRpcServer
from agent.embedded.traffic_methods import TrafficMethods

log = logging.getLogger(__name__)


async def run_target(
    rpc_socket: Path, state_dir: Path, nvmf_address: str | None, max_subsystems: int = MAX_SUBSYSTEMS
) -> None:
    """Serve until SIGTERM or SIGINT. `nvmf_address` is the only address NVMe/TCP may listen on, None for any.

    Raises FailedPrecondition when another target has the socket or the state directory.
    """
    state_dir.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - once, before anything is served
    _raise_file_limit()
    log.warning("embedded target: a stand-in for spdk_tgt for development, demos and tests; not for production")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await _serve(rpc_socket, state_dir, nvmf_address, max_subsystems, stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _serve(
    rpc_socket: Path, state_dir: Path, nvmf_address: str | None, max_subsystems: int, stop: asyncio.Event
) -> None:
    lock = FileLock(state_dir / "target.lock", f"state directory {state_dir}")
    methods, bdevs = Methods(), BdevRegistry()
    stores = LvstoreManager(bdevs, state_dir / "volatile")
    AppMethods(methods).register()
    NotificationMethods(bdevs).register(methods)
    BdevMethods(bdevs, stores.examine).register(methods)
    TrafficMethods(bdevs).register(methods)
    LvolMethods(bdevs, stores).register(methods)
    RaidMethods(bdevs).register(methods)
    KeyringMethods().register(methods)
    AbsentFrontends(bdevs).register(methods)
    nvmf = register_nvmf(methods, bdevs, nvmf_address, max_subsystems)
    server = JsonRpcServer(methods, rpc_socket)
    try:
        await server.start()
        await stop.wait()
    finally:
        await server.stop()
        await nvmf.close()
        await stores.close()
        lock.release()


def _raise_file_limit() -> None:
    """Data files and connections need descriptors; the usual soft limit of 1,024 is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    parser = argparse.ArgumentParser(description="Embedded stand-in for spdk_tgt.")
    parser.add_argument("--rpc-socket", type=Path, required=True)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--nvmf-address", default=None)
    parser.add_argument("--max-subsystems", type=int, default=MAX_SUBSYSTEMS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    socket, state = arguments.rpc_socket.absolute(), arguments.state_dir.absolute()
    asyncio.run(run_target(socket, state, arguments.nvmf_address, arguments.max_subsystems))


if __name__ == "__main__":
    main()
