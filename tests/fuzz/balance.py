"""A campaign from start to end, and the balance: what it left in process, target, store and machine, and said."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from agent.nvmf import initiator
from tests.crash.machine import NODE
from tests.fuzz.campaign import Campaign, Tally
from tests.fuzz.generate import SECRET_MARK
from tests.fuzz.lifecycle import MIB, Scene
from tests.fuzz.subject import Held, Subject

RSS_GROWTH_MAX_BYTES = 32 << 20
_WARM_UP = 2000
"""Requests before the process is measured for the first time: gRPC's pools and our caches are filled."""


@dataclass(frozen=True)
class Balance:
    """`faults` is empty when all is well; `before` and `after` are the process, idle, with nothing created."""

    tally: Tally
    before: Held
    after: Held
    faults: list[str]

    def __str__(self) -> str:
        mib = (self.after.rss_bytes - self.before.rss_bytes) / MIB
        held = f"{self.after.descriptors} descriptors, {self.after.threads} threads, {len(self.after.tasks)} tasks"
        return f"{self.tally.table()}\nmemory {mib:+.1f} MiB to {self.after.rss_bytes // MIB} MiB, {held}"


async def run(subject: Subject, scene: Scene, count: int, seed: int) -> Balance:
    """Warm up, measure, fire `count` requests, delete what was made, measure again, look everywhere, stop the agent."""
    untouchable = subject.untouchable()
    campaign = Campaign(subject, scene, seed)
    try:
        await campaign.prepare()
        untouchable = subject.untouchable()
        await campaign.run(min(_WARM_UP, count // 4))
        before = await subject.settled()
        await campaign.run(count - min(_WARM_UP, count // 4))
        await serves(campaign)
        after = await subject.settled()
    finally:
        await campaign.close()
    faults = [f"bad answer: {each}" for each in campaign.tally.bad]
    faults += _grown(before, after)
    faults += [f"left behind: {kind}: {what}" for kind, what in (await _leftovers(subject)).items()]
    if subject.untouchable() != untouchable:
        faults.append("something outside the mount root was touched")
    faults += _faults_at_the_end(subject)
    return Balance(campaign.tally, before, after, faults)


async def _leftovers(subject: Subject) -> dict[str, object]:
    """What stays: deleted snapshots that others stood on go in the background."""
    deadline = time.monotonic() + 10
    while True:
        left = await subject.leftovers()
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.1)


def _grown(before: Held, after: Held) -> list[str]:
    faults = []
    # Threads: those of asyncio's pool stay once started, and are counted (at most 32).
    for what, slack in (("descriptors", 0), ("children", 0), ("threads", 32)):
        if getattr(after, what) > getattr(before, what) + slack:
            faults.append(f"{what}: {getattr(before, what)} before, {getattr(after, what)} after")
    # Those that take notes of deletions back linger after the last one (pool.deletions_linger_s).
    lasting = [name for name in after.tasks if not name.startswith("zeroing-")]
    if len(lasting) > len(before.tasks):
        faults.append(f"tasks: {before.tasks} before, {after.tasks} after")
    if after.rss_bytes > before.rss_bytes + RSS_GROWTH_MAX_BYTES:
        faults.append(f"memory: {before.rss_bytes // MIB} MiB before, {after.rss_bytes // MIB} MiB after")
    return faults


def _faults_at_the_end(subject: Subject) -> list[str]:
    faults = []
    code = subject.stop_agent()
    if code != 0:
        faults.append(f"the agent ended with {code}")
    faults += [f"log: {entry}" for entry in subject.trouble()]
    faults += [f"a secret is in {place}" for place in subject.places_of(SECRET_MARK)]
    return faults


async def serves(campaign: Campaign) -> None:
    """The agent still does what it is for: a volume is made, written, read and deleted."""
    csi = campaign.patient
    volume = await csi.call("create_volume", "afterwards", 16 * MIB, {"tier": "ssd"})
    context = await csi.call("publish", volume, NODE)
    host = await initiator.connect(context["address"], int(context["port"]), context["nqn"], context["hostNqn"])
    try:
        assert await host.read(1, 0, MIB) == bytes(MIB), "a new volume is not blank"
        await host.write(1, 4096, b"written afterwards".ljust(4096))
        assert (await host.read(1, 4096, 4096)).startswith(b"written afterwards")
    finally:
        await host.close()
    await csi.call("unpublish", volume, NODE)
    await csi.call("delete_volume", volume)
