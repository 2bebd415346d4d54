"""Random sequences of CSI calls, valid and not, from several clients, with kills in between, against the model."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.contract.targets import find_spdk_tgt
from tests.model import calls
from tests.model import snapshot_calls as sc
from tests.model.bench import TIERS, Bench
from tests.model.driver import BLOCK
from tests.model.world import GIB, LARGEST, MIB, NODE, Call, Mode

KILLS_MAX = 2
EXAMPLES = {"embedded": 20, "real": 10}
STEPS = 30

# --- what is drawn: names and numbers only, so that what is drawn next never depends on an answer ------------------

NAMES = st.sampled_from(("a", "b", "pvc/c", "ünï ☃", "x" * 128))
SNAPSHOT_NAMES = st.sampled_from(("s", "t/1", "ü" * 64))
SIZES = st.sampled_from((0, 1, MIB, 3 * MIB + 1, 16 * MIB, 64 * MIB, 300 * MIB, GIB, 1 << 50, LARGEST + 1, -1))
LIMITS = st.sampled_from((0, 0, 0, 1, MIB, 16 * MIB, 2 * GIB, -1))
PARAMETERS = st.sampled_from(
    (
        (),
        (("tier", "ssd"),),
        (("provisioning", "thick"), ("tier", "ssd")),
        (("provisioning", "thin"), ("tier", "ssd")),
        (("provisioning", "thick"),),
        (("tier", "hdd"),),
        (("tier", "floppy"),),
        (("no-such", "parameter"),),
        (("replicas", "0"),),
    )
)
MODES = st.sampled_from((Mode.SINGLE_NODE_WRITER, Mode.SINGLE_NODE_WRITER, *Mode.Mode.values(), 99))
NODES = st.sampled_from((NODE, NODE, NODE, "no-such-node", ""))
OFFSETS = (0, BLOCK, MIB // 2, MIB - BLOCK, 5 * MIB + 2 * BLOCK, 17 * MIB)

CREATES = st.builds(calls.Create, NAMES | st.sampled_from(("", "a\0b", "x" * 129)), SIZES, LIMITS, PARAMETERS)
GOOD_CREATES = st.builds(calls.Create, NAMES, st.sampled_from((MIB, 16 * MIB, 300 * MIB)), parameters=PARAMETERS)
DELETES = st.builds(calls.Delete, NAMES)
PUBLISHES = st.builds(calls.Publish, NAMES, NODES, MODES, st.booleans())
GOOD_PUBLISHES = st.builds(calls.Publish, NAMES)
UNPUBLISHES = st.builds(calls.Unpublish, NAMES, NODES)
SNAPSHOTS = st.builds(sc.CreateSnapshot, SNAPSHOT_NAMES, NAMES)
SNAPSHOT_DELETES = st.builds(sc.DeleteSnapshot, SNAPSHOT_NAMES)
SOURCES = st.tuples(st.just("snapshot"), SNAPSHOT_NAMES) | st.tuples(st.just("volume"), NAMES)
COPIES = st.builds(calls.Create, NAMES, st.sampled_from((0, 0, MIB, 64 * MIB)), LIMITS, PARAMETERS, SOURCES)
GOOD_COPIES = st.builds(calls.Create, NAMES, source=SOURCES)
EXPANDS = st.builds(calls.Expand, NAMES, SIZES, LIMITS)
CHANGES = st.one_of(
    GOOD_CREATES,
    GOOD_CREATES,
    CREATES,
    DELETES,
    PUBLISHES,
    GOOD_PUBLISHES,
    UNPUBLISHES,
    EXPANDS,
    SNAPSHOTS,
    SNAPSHOT_DELETES,
    COPIES,
    GOOD_COPIES,
)
QUESTIONS = st.one_of(
    st.builds(calls.Validate, NAMES, PARAMETERS, MODES),
    st.builds(calls.Get, NAMES),
    st.builds(sc.GetSnapshot, SNAPSHOT_NAMES),
    st.builds(sc.ListSnapshots, NAMES | st.just(""), SNAPSHOT_NAMES | st.just(""), st.sampled_from((0, 1, -1))),
    st.builds(calls.ListAll, st.sampled_from((0, 1, 2, 100, -1))),
    st.builds(calls.ListFrom, st.sampled_from(("x", "after:", "☃", "1"))),
    st.builds(calls.Capacity, st.sampled_from((*TIERS, "hdd")), st.booleans()),
)


class Volumes(RuleBasedStateMachine):
    """One example: from nothing to nothing. `bench` is shared by all examples."""

    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.kills = 0

    @initialize()
    def start(self) -> None:
        self.driver = self.bench.driver()

    def _run(self, work: Any) -> Any:
        return self.bench.run(work)

    @rule(call=CHANGES, again=st.booleans())
    def change(self, call: Call, again: bool) -> None:
        answer = self._run(self.driver.one(call))
        if again:
            self._run(self.driver.again(call, answer))

    @rule(call=QUESTIONS)
    def ask(self, call: Call) -> None:
        self._run(self.driver.one(call))

    @rule(several=st.lists(CHANGES | QUESTIONS, min_size=2, max_size=4))
    def change_together(self, several: list[Call]) -> None:
        self._run(self.driver.together(several))

    @rule(name=NAMES, several=st.lists(st.integers(0, 11), min_size=2, max_size=4))
    def change_one_volume_together(self, name: str, several: list[int]) -> None:
        choices: list[Call] = [
            calls.Create(name, 16 * MIB),
            calls.Create(name, 64 * MIB),
            calls.Delete(name),
            calls.Publish(name),
            calls.Publish(name, readonly=True),
            calls.Unpublish(name),
            calls.Expand(name, 80 * MIB),
            sc.CreateSnapshot("s", name),
            sc.DeleteSnapshot("s"),
            calls.Create("copy", source=("volume", name)),
            calls.Create("copy", source=("snapshot", "s")),
            calls.Delete("copy"),
        ]
        self._run(self.driver.together([choices[index] for index in several]))

    @rule(call=GOOD_CREATES)
    def create(self, call: Call) -> None:
        self._run(self.driver.one(call))

    @rule(name=NAMES, offset=st.sampled_from(OFFSETS), text=st.sampled_from("abc"), unpublish=st.booleans())
    def use(self, name: str, offset: int, text: str, unpublish: bool) -> None:
        """As a pod does: publish, write, read, and perhaps close it again; then nobody else gets in."""
        self._run(self.driver.one(calls.Create(name, 16 * MIB, parameters=(("tier", "ssd"),))))
        self._run(self.driver.one(calls.Publish(name)))
        self._run(self.driver.read(name, OFFSETS))
        self._run(self.driver.write(name, offset, text))
        self._run(self.driver.read(name, OFFSETS))
        if unpublish:
            self._run(self.driver.one(calls.Unpublish(name)))
        self._run(self.driver.knock(name))

    @rule(name=NAMES, copy=NAMES, snapshot=SNAPSHOT_NAMES, of_volume=st.booleans(), text=st.sampled_from("abc"))
    def copy(self, name: str, copy: str, snapshot: str, of_volume: bool, text: str) -> None:
        """What is copied is what was there, and stays what it was, whatever is written to the other."""
        self._run(self.driver.one(calls.Create(name, 16 * MIB, parameters=(("tier", "ssd"),))))
        self._run(self.driver.one(calls.Publish(name)))
        self._run(self.driver.write(name, 0, text))
        self._run(self.driver.one(sc.CreateSnapshot(snapshot, name)))
        self._run(self.driver.write(name, BLOCK, text))
        source = ("volume", name) if of_volume else ("snapshot", snapshot)
        self._run(self.driver.one(calls.Create(copy, source=source)))
        self._run(self.driver.one(calls.Publish(copy)))
        self._run(self.driver.write(copy, MIB // 2, text))
        self._run(self.driver.read(name, OFFSETS))
        self._run(self.driver.read(copy, OFFSETS))

    @rule(name=NAMES)
    def replace(self, name: str) -> None:
        """Deleted unless it is published, and made anew: with nothing of what was in it."""
        self._run(self.driver.one(calls.Delete(name)))
        self._run(self.driver.one(calls.Create(name, 16 * MIB, parameters=(("tier", "ssd"),))))
        self._run(self.driver.one(calls.Publish(name)))
        self._run(self.driver.read(name, OFFSETS))

    @rule()
    def audit(self) -> None:
        self._run(self.driver.audit())

    @precondition(lambda self: self.kills < KILLS_MAX)
    @rule(
        several=st.lists(CHANGES, max_size=3),
        delay_ms=st.integers(0, 25),
        victims=st.sampled_from(("agent", "agent", "agent", "both")),
    )
    def kill(self, several: list[Call], delay_ms: int, victims: str) -> None:
        self.kills += 1
        self._run(self.driver.together_until_killed(several, delay_ms / 1000, victims))

    @invariant()
    def listed_and_counted(self) -> None:
        """The listing is the model's, complete and in order; what may be promised is what was not promised yet."""
        if hasattr(self, "driver"):
            self._run(self.driver.one(calls.ListAll()))
            self._run(self.driver.one(sc.ListSnapshots()))
            self._run(self.driver.look_closer())
            for tier in TIERS:
                self._run(self.driver.one(calls.Capacity(tier, False)))
                self._run(self.driver.one(calls.Capacity(tier, True)))

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.bench.finish(self.driver)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["embedded", "real"])
def test_every_answer_is_explained(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """QUARRY_EXAMPLES=500: so many, longer, others each time. QUARRY_SHRINK=1: finds the shortest that fails."""
    if kind == "real" and find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found (SPDK_TGT or PATH)")
    more = int(os.environ.get("QUARRY_EXAMPLES", "0"))
    chosen = settings(
        max_examples=more or EXAMPLES[kind],
        stateful_step_count=2 * STEPS if more else STEPS,
        derandomize=not more,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if os.environ.get("QUARRY_SHRINK") else (Phase.generate,),
    )
    with asyncio.Runner() as runner:
        bench = Bench(kind, runner)
        try:
            run_state_machine_as_test(type("Volumes", (Volumes,), {"bench": bench}), settings=chosen)
        finally:
            bench.close()
    with capsys.disabled():
        print(f"\n{kind}: {bench.examples} examples, {sum(bench.counts.values())} calls and checks: {bench.counts}")
