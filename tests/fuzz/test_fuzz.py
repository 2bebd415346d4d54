"""A bounded campaign in every test run; `make fuzz` runs the long one."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.contract.targets import find_spdk_tgt
from tests.fuzz import balance
from tests.fuzz.lifecycle import Scene
from tests.fuzz.subject import Subject, frontend

COUNTS = {"embedded": 20_000, "real": 5_000}
SEED = int(os.environ.get("QUARRY_SEED", random.SystemRandom().randrange(1 << 30)))


@pytest.fixture(params=["embedded", "real"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    if request.param == "real" and find_spdk_tgt() is None:
        pytest.skip("spdk_tgt not found (SPDK_TGT or PATH)")
    made = Subject(request.param, "1GiB")
    try:
        made.target.start()
        made.start_agent()
        yield made
    finally:
        made.close()


@pytest.mark.timeout(300)
async def test_nothing_asked_breaks_leaks_or_tells(subject: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    count = int(os.environ.get("QUARRY_FUZZ_REQUESTS", COUNTS[subject.kind]))
    scene = Scene(subject.pods, subject.canary, frontend(subject))
    try:
        result = await balance.run(subject, scene, count, SEED)
    except BaseException:
        print(f"seed {SEED}\n{subject.agent_log()[-20_000:]}")
        raise
    with capsys.disabled():
        print(f"\nseed {SEED}, {subject.kind} target\n{result}")
    assert not result.faults, "\n\n".join(fault[:2500] for fault in result.faults[:20])
