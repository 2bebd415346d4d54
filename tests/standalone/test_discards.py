"""What a host discards comes into no other volume: the target would give it away as it is (decision 0022)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agent.nvmf import initiator
from agent.nvmf.command import Cns
from agent.nvmf.failure import CommandError
from agent.nvmf.identify import OptionalCommands
from agent.nvmf.status import Status
from tests.crash.machine import Machine, Patient

from .test_full_pool import MIB, host_of

CLUSTERS = 50
SECRET = (b"belongs to tenant A " * 205)[:4096]
AT = MIB // 2


async def _write(host: initiator.Controller, data: bytes, at: int) -> None:
    """Into each cluster."""
    await asyncio.gather(*(host.write(1, number * MIB + at, data) for number in range(CLUSTERS)))


async def test_a_discard_is_neither_offered_nor_done(machine: Machine) -> None:
    machine.start_agent(disk_size="256MiB")
    client = Patient(machine.endpoint)
    try:
        await client.wait_ready()
        parameters = {"tier": "ssd"}
        volume = await client.call("create_volume", "a", CLUSTERS * MIB, parameters)
        async with host_of(client, volume) as host:
            assert not host.info.optional_commands & OptionalCommands.DATASET_MANAGEMENT
            assert host.info.optional_commands & OptionalCommands.WRITE_ZEROES
            limits = await host.admin.identify(Cns.CONTROLLER_COMMAND_SET)
            assert limits[3:16] == bytes(13), "DMRL, DMRSL, DMSL: to Linux anything else is an offer"
            await _write(host, SECRET, AT)
            offered = host.info.optional_commands | OptionalCommands.DATASET_MANAGEMENT
            host.info = replace(host.info, optional_commands=offered)  # a host that does not ask
            with pytest.raises(CommandError) as refused:
                await host.unmap(1, 0, CLUSTERS * MIB)
            assert refused.value.status == Status.INVALID_OPCODE
            for number in range(CLUSTERS):
                assert await host.read(1, number * MIB + AT, len(SECRET)) == SECRET

        other = await client.call("create_volume", "b", CLUSTERS * MIB, parameters)
        async with host_of(client, other) as host:
            await _write(host, bytes(4096), 0)
            shown = [await host.read(1, number * MIB + AT, len(SECRET)) for number in range(CLUSTERS)]
        assert [data for data in shown if data != bytes(len(SECRET))] == []
    finally:
        await client.close()
