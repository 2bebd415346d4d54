"""Random interleavings of two handles on one database against a dictionary."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.errors import AlreadyExists, Conflict, NotFound
from agent.model import Disk, Meta
from agent.store.local import LocalStore, open_local

NAMES = st.sampled_from(["a", "b", "c"])
WHO = st.sampled_from([0, 1])


class TwoHandles(RuleBasedStateMachine):
    """`expected` is the truth; `versions` all versions handed out, which must only grow."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.stores: list[LocalStore] = [self._open(), self._open()]
        self.expected: dict[str, Disk] = {}
        self.old: dict[str, Disk] = {}
        self.version = 0

    def _open(self) -> LocalStore:
        return self.loop.run_until_complete(open_local(self.folder / "quarry.db"))

    def _wrote(self, disk: Disk) -> None:
        assert disk.meta.version > self.version
        self.version = disk.meta.version
        self.old[disk.meta.name] = self.expected.get(disk.meta.name, disk)
        self.expected[disk.meta.name] = disk

    @rule(who=WHO, name=NAMES)
    def create(self, who: int, name: str) -> None:
        try:
            self._wrote(self.loop.run_until_complete(self.stores[who].create(Disk(Meta(name)))))
        except AlreadyExists:
            assert name in self.expected

    @rule(who=WHO, name=NAMES, size=st.integers(0, 1 << 64), stale=st.booleans())
    def update(self, who: int, name: str, size: int, stale: bool) -> None:
        read = (self.old if stale else self.expected).get(name, Disk(Meta(name)))
        changed = replace(read, status=replace(read.status, size_bytes=size))
        try:
            self._wrote(self.loop.run_until_complete(self.stores[who].update(changed)))
            assert changed.meta.version == self.old[name].meta.version
        except NotFound:
            assert name not in self.expected
        except Conflict:
            assert self.expected[name].meta.version != changed.meta.version

    @rule(who=WHO, name=NAMES, checked=st.booleans(), stale=st.booleans())
    def delete(self, who: int, name: str, checked: bool, stale: bool) -> None:
        read = (self.old if stale else self.expected).get(name)
        version = read.meta.version if checked and read else None
        try:
            self.loop.run_until_complete(self.stores[who].delete(Disk, name, version))
            self.expected.pop(name, None)
        except Conflict:
            assert self.expected[name].meta.version != version

    @rule(who=WHO)
    def reopen(self, who: int) -> None:
        self.loop.run_until_complete(self.stores[who].close())
        self.stores[who] = self._open()

    @invariant()
    def both_see_the_truth(self) -> None:
        for store in getattr(self, "stores", []):
            listed = self.loop.run_until_complete(store.list(Disk))
            assert {disk.meta.name: disk for disk in listed} == self.expected

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            for store in self.stores:
                self.loop.run_until_complete(store.close())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.folder)


TestTwoHandles = TwoHandles.TestCase
TestTwoHandles.settings = settings(max_examples=25, stateful_step_count=25, deadline=None, database=None)
