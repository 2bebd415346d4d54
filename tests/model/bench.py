"""An agent on a target that many examples are run on, one after the other, each from nothing to nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from agent.model import POOL_PREFIX
from agent.spdk import app, lvol
from agent.spdk.client import Client
from agent.volumes.rules.names import volume_id
from tests.fuzz.subject import Subject
from tests.model.driver import Driver
from tests.model.world import CLUSTER, Pool, Setting

TIERS = ("nvme", "ssd")
RATIO = 4.0
RESERVE_PERCENT, WARNING_PERCENT = 5.0, 20.0
SETTINGS = {
    "pool": {
        "overprovision_ratio": RATIO,
        "reserve_percent": RESERVE_PERCENT,
        "warning_percent": WARNING_PERCENT,
        "refresh_interval_s": 0.3,
    },
    "reconcile": {"audit_interval_s": 0.5},
}
"""Little room, so that it runs out, and audits all the time, so that they meet everything."""

T = TypeVar("T")


class Bench:
    """Made anew after an example that failed. Everything runs in one event loop."""

    def __init__(self, kind: str, runner: asyncio.Runner) -> None:
        self._kind = kind
        self._runner = runner
        self._subject: Subject | None = None
        self._driver: Driver | None = None
        self._free: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.examples = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def driver(self) -> Driver:
        """A driver of an agent that has no volumes."""
        if self._driver is not None:
            self.close()  # the last example did not come to its end
        if self._subject is None:
            return self._fresh()
        self._driver = Driver(self._subject, self._setting)
        return self._driver

    def _fresh(self) -> Driver:
        self._subject = subject = Subject(self._kind, "1GiB", TIERS, SETTINGS)
        try:
            subject.target.start()
            subject.start_agent()
            self._driver = self.run(self._measured(subject))
        except BaseException:
            print(subject.agent_log()[-5000:])
            self.close()
            raise
        return self._driver

    def finish(self, driver: Driver) -> None:
        """Delete everything, then look whether everything is gone."""
        self.run(self._finish(driver))
        for what, count in driver.counts.items():
            self.counts[what] = self.counts.get(what, 0) + count
        self.examples += 1
        self._driver = None

    def close(self) -> None:
        if self._driver is not None:
            self.run(self._driver.close())
            self._driver = None
        if self._subject is not None:
            self._subject.close()
            self._subject = None

    # --- inside ----------------------------------------------------------------------------------------------

    async def _measured(self, subject: Subject) -> Driver:
        driver = Driver(subject, Setting({}, volume_id))
        await driver.wait_ready()
        client, pools = driver.clients[0], {}
        for tier in TIERS:
            size = int(await client.capacity({"tier": tier, "provisioning": "thin"}) / RATIO)
            reserve, warning = (int(size * percent / 100) for percent in (RESERVE_PERCENT, WARNING_PERCENT))
            pools[tier] = Pool(size, RATIO, reserve, warning)
        self._free = await _free_bytes(subject)
        driver.setting = self._setting = Setting(pools, volume_id)
        return driver

    async def _finish(self, driver: Driver) -> None:
        assert self._subject is not None
        await driver.audit()
        await driver.delete_everything(snapshots_last=self.examples % 2 == 0)
        # Snapshots that others stood on go in the background, once those are gone.
        await _comes_true(self._nothing_is_left, "something is left")
        await self._capacity_returns(driver)
        trouble = self._subject.trouble()
        assert not trouble, trouble[0]
        await driver.close()

    async def _capacity_returns(self, driver: Driver) -> None:
        """With the next audit at the latest, what may be promised is again what there is."""
        for tier, pool in driver.setting.pools.items():
            parameters, all_of_it = {"tier": tier, "provisioning": "thick"}, pool.size - pool.reserve

            async def returned(parameters: dict[str, str] = parameters, all_of_it: int = all_of_it) -> str:
                found = await driver.clients[0].capacity(parameters)
                return "" if found > all_of_it - CLUSTER else f"{found} of {all_of_it} bytes are offered: {parameters}"

            await _comes_true(returned, "all is deleted")

    async def _nothing_is_left(self) -> str:
        assert self._subject is not None
        left = await self._subject.leftovers()
        free = await _free_bytes(self._subject)
        return f"{left or ''} free {free}, at first {self._free}" if left or free != self._free else ""


async def _comes_true(missing: Callable[[], Awaitable[str]], what: str) -> None:
    """Return when `missing` has nothing to say any more."""
    deadline = time.monotonic() + 10
    while problem := await missing():
        assert time.monotonic() < deadline, f"{what}: {problem}"
        await asyncio.sleep(0.05)


async def _free_bytes(subject: Subject) -> dict[str, int]:
    """Free bytes of every pool, straight from the target."""
    async with Client(subject.target.socket_path, call_timeout_s=30) as rpc:
        await rpc.wait_connected(30)
        await app.wait_init(rpc)
        return {
            each.name: each.free_bytes for each in await lvol.list_lvstores(rpc) if each.name.startswith(POOL_PREFIX)
        }
