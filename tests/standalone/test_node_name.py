"""The state folder is that of one node: under another name its volumes would silently not be served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.config.settings import Settings
from agent.csi.client import CsiClient
from agent.daemon.standalone import Standalone
from agent.errors import FailedPrecondition

MIB = 1 << 20


async def test_another_node_name_is_refused(settings: Callable[..., Settings], folder: Path) -> None:
    given = settings(f"{folder}/d0.img:1GiB:ssd")
    async with Standalone(given) as agent, CsiClient(given.csi_endpoint) as client:
        await agent.wait_ready(30)
        volume = await client.create_volume("v", 16 * MIB, {"tier": "ssd"})
    with pytest.raises(FailedPrecondition, match="--node-name node-a"):
        async with Standalone(given.model_copy(update={"node_name": "renamed"})):
            pass
    async with Standalone(given) as agent, CsiClient(given.csi_endpoint) as client:
        await agent.wait_ready(30)
        assert (await client.publish(volume, "node-a"))["nqn"]
