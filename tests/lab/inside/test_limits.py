"""What a StorageClass says about limits and connections, as the kernel has it and in the numbers of fio."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from agent.csi.client import CsiClient
from agent.volumes.rules.names import volume_nqn

from .conftest import MakePod
from .node import MIB, Node
from .tools import Fio, run, until

LIMIT = MIB
SECONDS = 6
FRONTENDS = ["nvme-tcp", pytest.param("ublk", marks=pytest.mark.ublk)]


async def rate(fio: Fio) -> float:
    """Bytes a second that it writes, over some seconds."""
    began, before = time.monotonic(), fio.written()
    await asyncio.sleep(SECONDS)
    return (fio.written() - before) / (time.monotonic() - began)


@pytest.mark.parametrize("frontend", FRONTENDS)
async def test_limited_under_fio(pod: MakePod, node: Node, client: CsiClient, frontend: str) -> None:
    """Limited at creation, freed, limited and freed again under verified writes, and changed while detached."""
    mine = await pod(frontend=frontend, parameters={"writeBandwidth": str(LIMIT)})
    options: dict[str, str | int] = {"time_based": 1, "runtime": 500, "bs": "16k", "verify_backlog": 64}
    rates = []
    async with Fio(mine.file, size="16m", options=options) as fio:
        await until(fio.written, lambda count: count > 0)
        rates.append(await rate(fio))
        for limit in (0, LIMIT, 0):
            await client.modify(mine.volume_id, {"writeBandwidth": str(limit)})
            rates.append(await rate(fio))
        assert (await fio.finish()).error == 0
    print(f"{node.kind} {frontend}: {[round(each / MIB, 2) for each in rates]} MiB/s")
    assert all(each < 1.2 * LIMIT for each in rates[::2])
    # Compared with what the same machine did just before: an emulated one with other work does hardly more.
    assert all(free > 1.4 * limited for limited, free in zip(rates[::2], rates[1::2], strict=True))
    await mine.detach()
    await client.modify(mine.volume_id, {"writeBandwidth": str(LIMIT)})
    await client.modify(mine.volume_id, {"writeBandwidth": str(2 * LIMIT)})
    await client.modify(mine.volume_id, {"writeBandwidth": str(LIMIT)})
    await mine.attach()
    async with Fio(mine.file, size="16m", options=options) as fio:
        await until(fio.written, lambda count: count > MIB)
        assert await rate(fio) < 1.2 * LIMIT
    await mine.detach()
    await mine.gone()


async def test_the_kernel_connects_as_the_class_says(pod: MakePod, node: Node) -> None:
    given = {"ctrlLossTimeout": "600", "reconnectDelay": "3", "keepAliveTimeout": "20", "ioQueues": "1"}
    mine = await pod(parameters=given)
    (controller,) = node.host.controllers(volume_nqn(mine.volume_id))
    found = Path("/sys/class/nvme", controller.name)
    names = ("ctrl_loss_tmo", "reconnect_delay", "kato", "queue_count")
    assert [(found / name).read_text().strip() for name in names] == ["600", "3", "20", "2"]  # with the admin queue
    await mine.detach()


async def test_filesystem_made_as_the_class_says(pod: MakePod) -> None:
    mine = await pod("ext4", parameters={"mkfsOptions": "-L 'of-class' -I 512"})
    made = await run("dumpe2fs", "-h", mine.device)
    assert any(line.split() == ["Inode", "size:", "512"] for line in made.splitlines())
    assert any(line.split() == ["Filesystem", "volume", "name:", "of-class"] for line in made.splitlines())
    await mine.detach()
