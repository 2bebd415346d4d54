"""A Lease is lost to another and by time, never to an error that nobody has foreseen."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

import pytest

from agent.errors import Unavailable
from agent.store.kubernetes.leases import Heartbeats, Holder, Lease, Leases
from agent.tasks.failures import FAILURES


class OneLease:
    """The Leases of a namespace: one, whose requests fail as `failures` say, one after the other."""

    def __init__(self) -> None:
        self.lease = Lease("quarry-node-a", "", "", 10, "1")
        self.failures: list[Exception] = []
        self.writes = 0

    async def get(self, name: str) -> Lease | None:
        return self.lease

    async def list(self) -> list[Lease]:
        if self.failures:
            raise self.failures.pop(0)
        return [self.lease]

    async def write(self, name: str, holder: str, duration_s: int, version: str) -> Lease:
        self.writes += 1
        if self.failures:
            raise self.failures.pop(0)
        self.lease = replace(self.lease, holder=holder, version=str(int(self.lease.version) + 1))
        return self.lease


@pytest.mark.parametrize("failure", [KeyError("metadata"), Unavailable("the API is away")])
@pytest.mark.parametrize("for_ever", [True, False])
async def test_a_lease_is_renewed_after_whatever_went_wrong(failure: Exception, for_ever: bool) -> None:
    there, before = OneLease(), FAILURES.counts["lease"]
    holder = Holder(cast(Leases, there), "quarry-node-a", "me", lease_s=30, renew_s=0.01)
    await holder.acquire()
    there.failures = [failure]
    keeping = asyncio.create_task(holder.keep(for_ever=for_ever))
    try:
        async with asyncio.timeout(5):
            while there.writes < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        assert not keeping.done()
        assert holder.holds
        assert FAILURES.counts["lease"] - before == 1
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})


async def test_a_look_that_fails_makes_no_node_silent() -> None:
    there, changes = OneLease(), list[str]()
    there.lease = replace(there.lease, holder="me")
    beats = Heartbeats(cast(Leases, there), "quarry-node-", lambda: changes.append("changed"))
    await beats.look()
    assert beats.is_alive("a")
    there.failures = [KeyError("items")]
    with pytest.raises(KeyError):
        await beats.look_again()
    assert beats.is_alive("a")
    await beats.look_again()
    assert changes == ["changed"]
