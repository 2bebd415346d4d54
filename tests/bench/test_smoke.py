"""The bench runs to its end and reports everything it promises."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from tests.bench import idle
from tests.bench.churn_results import Churn, disagreement
from tests.bench.churn_results import verdicts as verdicts_of_cluster
from tests.bench.results import Latency, Results, verdicts
from tests.bench.target import find_real
from tests.kube.control_plane import missing

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", ["embedded", pytest.param("real", marks=pytest.mark.real)])
async def test_quick_run(target: str) -> None:
    output = await _bench(target, "standalone")
    found = msgspec.json.decode(output, type=Results, strict=False)
    assert found.target == target
    assert [rate.callers for rate in found.rates] == [1, 8]
    for rate in found.rates:
        assert rate.agent > 0
        assert rate.floor > 0
        assert set(rate.calls) == {"create", "publish", "unpublish", "delete"}
    assert found.official["create"].count == 4
    assert found.growth is not None
    assert found.growth.many == 20
    assert found.recovery is not None
    assert found.recovery.volumes == 10
    assert found.usage is not None
    assert found.usage.rss_many_mib > 10
    assert len(verdicts(found)) == 3


@pytest.mark.parametrize("target", ["embedded", pytest.param("real", marks=pytest.mark.real)])
async def test_quick_run_of_a_cluster(target: str) -> None:
    if why := missing():
        pytest.skip(why)
    found = msgspec.convert(msgspec.json.decode(await _bench(target, "cluster"))["cluster"], Churn)
    assert found.target == target
    for lives in (found.few, found.many, found.beside):
        assert lives.per_second > 0
        assert set(lives.calls) == {"create", "publish", "unpublish", "delete"}
        assert not disagreement(lives)
        assert {each.name for each in lives.processes} >= {"node", "controller"}
    assert all(floor > 0 for floor in found.floors)
    assert found.crowd.volumes == 40
    requests = next(each for each in verdicts_of_cluster(found) if "requests per volume" in each.what)
    assert requests.passed, (found.few.requests, found.many.requests)


async def _bench(target: str, part: str) -> bytes:
    if target == "real" and find_real() is None:
        pytest.skip("no spdk_tgt: neither SPDK_TGT nor PATH names one")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench", "--quick", "--part", part, "--target", target, "-o", "json"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output = (await asyncio.wait_for(process.communicate(), 100))[0]
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert process.returncode == 0
    return output


def test_latency_of_known_values() -> None:
    found = Latency.of([i / 1000 for i in range(1, 102)])
    assert (found.p50, found.p99, found.count) == (51.0, 100.0, 101)
    assert Latency.of([0.002]) == Latency(2.0, 2.0, 1)


@pytest.mark.parametrize(
    ("mode", "percent", "volumes", "hosts", "passed"),
    [
        ("interrupt", 1.04, 100, 10, True),
        ("interrupt", 3.01, 100, 10, False),
        ("interrupt", 1.04, 99, 10, False),
        ("interrupt", 1.04, 100, 9, False),
        ("polling", 100.0, 100, 10, None),
    ],
)
def test_the_bar_of_a_sleeping_target_can_be_missed(
    mode: str, percent: float, volumes: int, hosts: int, passed: bool | None
) -> None:
    """Too much CPU, or less to do than was promised; who polls is not judged."""
    found = idle.Idle("nvmf_tgt", mode, "SPDK v26.05", "AIO disk", volumes, hosts, 0.9, percent, 0.6, 0.9)
    assert [each.passed for each in idle.verdicts([found], idle.Sizes())] == ([] if passed is None else [passed])
