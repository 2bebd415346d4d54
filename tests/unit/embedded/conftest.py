"""The embedded target's parts put together in this process: methods by name, bdevs for I/O, restarts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.embedded.app_methods import NotificationMethods
from agent.embedded.bdev import Bdev, BdevRegistry
from agent.embedded.bdev_methods import BdevMethods
from agent.embedded.lvs.manager import LvstoreManager
from agent.embedded.lvs.methods import LvolMethods
from agent.embedded.raid_methods import RaidMethods
from agent.embedded.rpc import Methods
from agent.embedded.traffic_methods import TrafficMethods

MIB = 1024 * 1024


class Machine:
    """A target without sockets, on files in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.start()

    def start(self) -> None:
        """A new process, as far as the parts can tell."""
        self.methods = Methods()
        self.bdevs = BdevRegistry()
        self.stores = LvstoreManager(self.bdevs, self.directory / "volatile")
        NotificationMethods(self.bdevs).register(self.methods)
        BdevMethods(self.bdevs, self.stores.examine).register(self.methods)
        TrafficMethods(self.bdevs).register(self.methods)
        LvolMethods(self.bdevs, self.stores).register(self.methods)
        RaidMethods(self.bdevs).register(self.methods)

    async def restart(self) -> None:
        await self.stores.close()
        self.start()

    async def call(self, method: str, **params: Any) -> Any:
        """Raises RpcFault."""
        return await self.methods.call(method, params or None)

    def bdev(self, name: str) -> Bdev:
        found = self.bdevs.get(name)
        assert found is not None, f"no bdev {name}"
        return found

    def disk(self, name: str, size_bytes: int) -> Path:
        path = self.directory / f"{name}.img"
        with path.open("ab") as file:
            file.truncate(size_bytes)
        return path

    async def pool(self, size_bytes: int = 64 * MIB, cluster_bytes: int = MIB, name: str = "pool") -> None:
        """A lvstore `name` on a new disk `disk-<name>`."""
        path = self.disk(name, size_bytes)
        await self.call("bdev_aio_create", name=f"disk-{name}", filename=str(path), block_size=4096)
        await self.call("bdev_lvol_create_lvstore", bdev_name=f"disk-{name}", lvs_name=name, cluster_sz=cluster_bytes)

    async def reopen(self, name: str = "pool") -> None:
        """Give the disk of a pool to a target that was started again."""
        path = self.directory / f"{name}.img"
        await self.call("bdev_aio_create", name=f"disk-{name}", filename=str(path), block_size=4096)

    async def free_clusters(self, name: str = "pool") -> int:
        (store,) = await self.call("bdev_lvol_get_lvstores", lvs_name=name)
        free: int = store["free_clusters"]
        return free

    async def lvols(self, name: str = "pool") -> dict[str, dict[str, Any]]:
        return {lvol["name"]: lvol for lvol in await self.call("bdev_lvol_get_lvols", lvs_name=name)}


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    made = Machine(tmp_path)
    yield made
    await made.stores.close()


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A folder with a path short enough for UNIX sockets."""
    path = Path(tempfile.mkdtemp(prefix="qe-"))
    yield path
    shutil.rmtree(path)
