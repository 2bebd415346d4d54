"""Checks the path to a subsystem with the user-space initiator: connect, identify, time reads. Writes nothing."""

from __future__ import annotations

import random
import time
import uuid
from dataclasses import dataclass

from agent.nvmf import initiator
from agent.nvmf.initiator import NamespaceInfo, Options

_READ_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ControllerFacts:
    """What the controller says of itself."""

    model: str
    serial: str
    firmware: str
    controller_id: int


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the probe saw. Times in seconds; `read_latencies_s` has one value for each read, in the order of reading."""

    connect_s: float
    identify_s: float
    controller: ControllerFacts
    namespaces: tuple[NamespaceInfo, ...]
    read_latencies_s: tuple[float, ...]


async def probe(
    address: str, port: int, subnqn: str, *, hostnqn: str | None = None, samples: int = 100, timeout_s: float = 5.0
) -> ProbeReport:
    """Connect to `subnqn` as `hostnqn` (None: a host made up for this probe) and time `samples` reads of 4 KiB.

    The reads go to random places of the first namespace, one after the other. Raises as `initiator.connect` does, and
    CommandError when a read fails.
    """
    host = hostnqn or f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid4()}"
    started = time.perf_counter()
    controller = await initiator.connect(address, port, subnqn, host, Options(timeout_s=timeout_s))
    connected = time.perf_counter()
    try:
        info = await controller.identify()
        namespaces = await controller.namespaces()
        identified = time.perf_counter()
        latencies: list[float] = []
        if namespaces:
            first = namespaces[0]
            length = max(_READ_BYTES, first.block_bytes)
            places = max(first.size_bytes // length, 1)
            for _ in range(samples):
                begun = time.perf_counter()
                where = random.randrange(places) * length  # noqa: S311 no secret
                await controller.read(first.nsid, where, min(length, first.size_bytes))
                latencies.append(time.perf_counter() - begun)
    finally:
        await controller.close()
    facts = ControllerFacts(info.model, info.serial, info.firmware, info.cntlid)
    return ProbeReport(connected - started, identified - connected, facts, tuple(namespaces), tuple(latencies))
